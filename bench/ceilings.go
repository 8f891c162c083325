package main

import (
	"context"
	"net/http"
	"os"
	"syscall"
	"time"
)

// nothingArgument turns this program into a server that does nothing.
const nothingArgument = "serve-nothing"

// serveNothing answers every request with 200, using net/http.
func serveNothing(address string) error {
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
	}))
}

// nothing is that server as a system of one node.
type nothing struct{ kvd }

func (*nothing) name() string { return "nothing" }

func (*nothing) args(c *cluster, _ int) []string {
	self, _ := os.Executable() // always known on Linux
	return []string{self, nothingArgument, c.clients[0]}
}

func (*nothing) leader(context.Context, *cluster) (int, error) { return 0, nil }

func ceilings(ctx context.Context, b *bench) error {
	c, err := b.start(ctx, &nothing{}, 1)
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	for range b.rounds {
		s, err := b.load(ctx, c, opPut, 64, b.keySpace)
		if err != nil {
			return err
		}
		b.say("net/http that does nothing, 64 clients: %.0f/s, %v an operation", s.rate, s.cpu)
		b.report.row("ceiling: net/http that only answers 200, 64 clients, rate", "1/s", nil).add("kvd", s.rate)
		b.report.row("ceiling: net/http that only answers 200, 64 clients, CPU", "µs each", nil).add("kvd", us(s.cpu))
		if err := b.syncs(ctx); err != nil {
			return err
		}
	}
	return nil
}

// syncs appends 4 KiB and calls fdatasync, repeatedly.
func (b *bench) syncs(ctx context.Context) error {
	f, err := os.CreateTemp(b.dir, "sync-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4<<10)
	begin, n := time.Now(), 0
	for ; time.Since(begin) < b.round() && ctx.Err() == nil; n++ {
		if _, err := f.Write(block); err != nil {
			return err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	rate := float64(n) / time.Since(begin).Seconds()
	b.say("write and fdatasync of 4 KiB: %.0f/s", rate)
	b.report.row("ceiling: write and fdatasync of 4 KiB, rate", "1/s", nil).add("kvd", rate)
	return nil
}
