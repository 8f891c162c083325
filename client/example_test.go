package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/kvd-io/kvd/client"
)

// The examples run against a node that was started for them.

func connect() *client.Client {
	c, err := client.New(client.Config{Endpoints: endpoints})
	if err != nil {
		log.Fatal(err)
	}
	return c
}

// Put a value, and read it back.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := client.New(client.Config{Endpoints: endpoints})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(ctx, "service/web/1", []byte("10.0.0.7:80")); err != nil {
		log.Fatal(err)
	}
	kv, err := c.Get(ctx, "service/web/1")
	switch {
	case errors.Is(err, client.ErrKeyNotFound):
		fmt.Println("nobody serves")
	case err != nil:
		log.Fatal(err)
	default:
		fmt.Printf("%s, version %d\n", kv.Value, kv.Version)
	}
	// Output: 10.0.0.7:80, version 1
}

// Change a value only if nobody else has changed it since it was read.
func ExampleIfRevision() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	w, err := c.Put(ctx, "config/color", []byte("red"))
	if err != nil {
		log.Fatal(err)
	}
	_, err = c.Put(ctx, "config/color", []byte("blue"), client.IfRevision(w.Revision))
	fmt.Println("blue:", err)
	_, err = c.Put(ctx, "config/color", []byte("green"), client.IfRevision(w.Revision))
	var changed *client.PreconditionFailedError
	if errors.As(err, &changed) {
		fmt.Println("green: somebody was faster:", changed.Revision > w.Revision)
	}
	// Output:
	// blue: <nil>
	// green: somebody was faster: true
}

// Count something, however many processes do so at the same time.
func ExampleClient_Incr() {
	c := connect()
	defer c.Close()
	for range 3 {
		if _, err := c.Incr(context.Background(), "visits", 2); err != nil {
			log.Fatal(err)
		}
	}
	sum, err := c.Incr(context.Background(), "visits", 0)
	fmt.Println(sum, err)
	// Output: 6 <nil>
}

// List a directory, a page at a time, as of one revision.
func ExampleClient_List() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	for _, name := range []string{"ann", "bob", "cid"} {
		if _, err := c.Put(ctx, "user/"+name, []byte("…")); err != nil {
			log.Fatal(err)
		}
	}
	for kv, err := range c.List(ctx, client.Prefix("user/"), client.KeysOnly()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(kv.Key)
	}
	// Output:
	// user/ann
	// user/bob
	// user/cid
}

// Move money: both accounts change, or none does.
func ExampleClient_Txn() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	if _, err := c.Txn().Then(client.OpIncr("account/a", 100), client.OpIncr("account/b", 0)).Commit(ctx); err != nil {
		log.Fatal(err)
	}
	result, err := c.Txn().
		If(client.ValueIs("account/a", []byte("100"))).
		Then(client.OpIncr("account/a", -30), client.OpIncr("account/b", 30)).
		Else(client.OpGet("account/a")).
		Commit(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Succeeded, result.Results[0].Sum, result.Results[1].Sum)
	// Output: true 70 30
}

// Write many keys in one stream.
func ExampleClient_Batch() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	ops := func(yield func(client.Op) bool) {
		for i := range 1000 {
			if !yield(client.OpPut(fmt.Sprintf("bulk/%04d", i), []byte("x"))) {
				return
			}
		}
	}
	written := 0
	for result, err := range c.Batch(ctx, ops) {
		switch {
		case err != nil:
			log.Fatal(err)
		case result.Err != nil:
			log.Printf("operation %d: %v", result.N, result.Err)
		default:
			written++
		}
	}
	fmt.Println(written)
	// Output: 1000
}

// Read a directory, and then follow its changes without a gap.
func ExampleClient_Watch() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := connect()
	defer c.Close()
	if _, err := c.Put(ctx, "peers/1", []byte("up")); err != nil {
		log.Fatal(err)
	}
	var at uint64
	for kv, err := range c.List(ctx, client.Prefix("peers/"), client.ReportRevision(&at)) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s is %s\n", kv.Key, kv.Value)
	}
	if _, err := c.Delete(ctx, "peers/1"); err != nil {
		log.Fatal(err)
	}
	for event, err := range c.Watch(ctx, client.Prefix("peers/"), client.WatchOptions{From: at + 1}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s was deleted: %v\n", event.KV.Key, event.Deleted)
		break
	}
	// Output:
	// peers/1 is up
	// peers/1 was deleted: true
}

// Show every value that a key has had.
func ExampleClient_History() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	for _, color := range []string{"red", "green"} {
		if _, err := c.Put(ctx, "history/color", []byte(color)); err != nil {
			log.Fatal(err)
		}
	}
	if _, err := c.Delete(ctx, "history/color"); err != nil {
		log.Fatal(err)
	}
	for event, err := range c.History(ctx, client.Key("history/color")) {
		switch {
		case err != nil:
			log.Fatal(err)
		case event.Deleted:
			fmt.Println("deleted")
		default:
			fmt.Println(string(event.KV.Value))
		}
	}
	// Output:
	// red
	// green
	// deleted
}

// Register a service under a key that disappears with the process.
func ExampleClient_NewSession() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	session, err := c.NewSession(ctx, 15*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Put(ctx, "service/api/1", []byte("10.0.0.8:80"), client.WithLease(session.Lease())); err != nil {
		log.Fatal(err)
	}
	// ... serve until session.Lost() is closed ...
	if err := session.Close(ctx); err != nil {
		log.Fatal(err)
	}
	_, err = c.Get(ctx, "service/api/1")
	fmt.Println(errors.Is(err, client.ErrKeyNotFound))
	// Output: true
}

// Do something in one process at a time.
func ExampleClient_Lock() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	lock, err := c.Lock(ctx, "nightly-report", client.LockOptions{Text: "host7"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = lock.Unlock(ctx) }()
	// Work under a context that ends when the lock may have been lost, and pass the
	// token along with each request to what the lock protects.
	work, cancel := lock.Session().Context(ctx)
	defer cancel()
	fmt.Println(work.Err(), lock.Token > 0)
	// Output: <nil> true
}

// Elect a leader, which says where it is.
func ExampleClient_Election() {
	ctx := context.Background()
	c := connect()
	defer c.Close()
	election := c.Election("scheduler")
	office, err := election.Campaign(ctx, []byte("10.0.0.7:9000"), client.LockOptions{})
	if err != nil {
		log.Fatal(err)
	}
	leader, err := election.Leader(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s leads\n", leader.Value)
	if err := office.Resign(ctx); err != nil {
		log.Fatal(err)
	}
	_, err = election.Leader(ctx)
	fmt.Println("nobody leads:", errors.Is(err, client.ErrKeyNotFound))
	// Output:
	// 10.0.0.7:9000 leads
	// nobody leads: true
}
