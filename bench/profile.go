package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
)

// profile takes a CPU profile of the leader, if it is kvd's and profiles are wanted. The
// caller calls the returned function at the end of the round.
func (b *bench) profile(ctx context.Context, c *cluster, leader int) (end func()) {
	if b.profiles == "" || c.sys.name() != "kvd" {
		return func() {}
	}
	b.profiled++
	name := filepath.Join(b.profiles, fmt.Sprintf("%s-%d.pb.gz", b.running, b.profiled))
	done := make(chan error, 1)
	go func() {
		done <- fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", c.metrics[leader], max(1, int(b.seconds))), name)
	}()
	return func() {
		if err := <-done; err != nil {
			b.say("no profile: %v", err)
		}
	}
}

// fetch writes what a URL answers to a file.
func fetch(ctx context.Context, from, name string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %.200s", from, resp.Status, text)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}
