package client_test

import (
	"errors"
	"testing"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/kvdtest"
)

// Everything works the same over TLS, HTTP/2, and unix sockets.
func TestTransports(t *testing.T) {
	for name, c := range map[string]struct {
		options []kvdtest.Option
		http2   bool
	}{
		"HTTP/2 in the clear":        {nil, true},
		"TLS":                        {[]kvdtest.Option{kvdtest.TLS()}, false},
		"unix socket":                {[]kvdtest.Option{kvdtest.UnixSocket()}, false},
		"HTTP/2 over a unix socket":  {[]kvdtest.Option{kvdtest.UnixSocket()}, true},
		"HTTP/2 only, with TLS":      {[]kvdtest.Option{kvdtest.TLS()}, true},
		"HTTP/1.1, without anything": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := kvdtest.New(t, c.options...)
			cl, err := client.New(client.Config{Endpoints: []string{n.Endpoint}, TLS: n.TLS, HTTP2: c.http2})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cl.Close)
			useAll(t, cl)
		})
	}
}

// useAll makes one request of each kind that is sent in a way of its own.
func useAll(t *testing.T, c *client.Client) {
	ctx := t.Context()
	w, err := c.Put(ctx, "k", make([]byte, 500_000))
	if err != nil {
		t.Fatal(err)
	}
	if kv, err := c.Get(ctx, "k"); err != nil || len(kv.Value) != 500_000 {
		t.Errorf("get: %v", err)
	}
	for r, err := range c.Batch(ctx, count(500)) {
		if err != nil || r.Err != nil {
			t.Fatal(r, err)
		}
	}
	events := 0
	for _, err := range c.Watch(ctx, client.Prefix("counter/"), client.WatchOptions{From: w.Revision + 1}) {
		if events++; err != nil {
			t.Fatal(err)
		}
		if events == 500 {
			break
		}
	}
	l, err := c.Lock(ctx, "l", client.LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(ctx); err != nil {
		t.Error(err)
	}
	var size sizeOnly
	if err := c.Snapshot(ctx, &size); err != nil || size == 0 {
		t.Errorf("snapshot of %d bytes: %v", size, err)
	}
}

// sizeOnly counts what is written to it.
type sizeOnly int

func (s *sizeOnly) Write(p []byte) (int, error) {
	*s += sizeOnly(len(p))
	return len(p), nil
}

// Each error of a node can be told from the others.
func TestErrorsOfNodes(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	lease, err := c.Grant(ctx, 60e9)
	if err != nil {
		t.Fatal(err)
	}
	_, unknownKey := c.Get(ctx, "absent")
	_, unknownLease := c.Put(ctx, "k", nil, client.WithLease(lease.ID+1))
	unknownMember := c.RemoveMember(ctx, 99)
	_, tooLarge := c.Put(ctx, "k", make([]byte, 2<<20))
	_, future := c.Get(ctx, "k", client.AtRevision(1<<40))
	_, exists := c.AddMember(ctx, client.NewMember{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}})
	lastVoter := c.RemoveMember(ctx, 1)
	for want, got := range map[error]error{
		client.ErrKeyNotFound: unknownKey, client.ErrLeaseNotFound: unknownLease, client.ErrMemberNotFound: unknownMember,
		client.ErrTooLarge: tooLarge, client.ErrFutureRevision: future, client.ErrMemberExists: exists, client.ErrUnsafeChange: lastVoter,
	} {
		var e *client.Error
		if !errors.Is(got, want) || !errors.As(got, &e) || e.Detail == "" {
			t.Errorf("want %v, got %v", want, got)
		}
	}
	if errors.Is(unknownKey, client.ErrLeaseNotFound) || !errors.Is(unknownKey, client.ErrNotFound) {
		t.Errorf("%v", unknownKey)
	}
}

func TestSettings(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	before, err := c.Settings(ctx)
	if err != nil || before.MaxValueBytes == 0 || before.Tag == "" {
		t.Fatalf("%+v %v", before, err)
	}
	after, err := c.ChangeSettings(ctx, client.SettingsChange{MaxValueBytes: new(int64(100)), IfTag: before.Tag})
	if err != nil || after.MaxValueBytes != 100 || after.MaxKeyBytes != before.MaxKeyBytes {
		t.Fatalf("%+v %v", after, err)
	}
	if _, err := c.ChangeSettings(ctx, client.SettingsChange{MaxValueBytes: new(int64(200)), IfTag: before.Tag}); !errors.Is(err, client.ErrPreconditionFailed) {
		t.Errorf("settings that have changed: %v", err)
	}
}

// A history begins with what was there when the oldest revision was the newest.
func TestHistory(t *testing.T) {
	ctx := t.Context()
	c := kvdtest.New(t).Client()
	for i := range 5 {
		if _, err := c.Put(ctx, "k", []byte{byte('0' + i)}); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			if _, err := c.Delete(ctx, "k"); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func() (out string) {
		for e, err := range c.History(ctx, client.Key("k")) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Deleted {
				out += "-"
			}
			out += string(e.KV.Value)
		}
		return out
	}
	if got := read(); got != "012-34" {
		t.Errorf("the whole history: %s", got)
	}
	if _, err := c.Compact(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "12-34" {
		t.Errorf("the rest of the history: %s", got)
	}
	if _, err := c.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "12-34-" {
		t.Errorf("a history with an end: %s", got)
	}
}
