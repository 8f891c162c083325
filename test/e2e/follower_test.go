package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// follower watches the keys of a load over all that happens to a cluster: when a stream
// ends, it resumes with another one, and keeps what came.
type follower struct {
	name string
	// read reads one stream from a revision on, until it ends. An error says that what came
	// is wrong, and not that the stream broke.
	read func(ctx context.Context, f *follower) error
	mu   struct {
		sync.Mutex
		seen    map[uint64]change
		next    uint64      // the first revision that may still come
		gaps    [][2]uint64 // from, up to but not including
		streams int
		wrong   error
	}
}

func newFollower(name string, from uint64, read func(context.Context, *follower) error) *follower {
	f := &follower{name: name, read: read}
	f.mu.next, f.mu.seen = from, make(map[uint64]change)
	return f
}

// run follows until the context ends or something is wrong.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.read(ctx, f)
		f.mu.Lock()
		f.mu.streams++
		f.mu.wrong = err
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// at returns the revision to go on at.
func (f *follower) at() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.next
}

// take takes an event. Each revision of a load changes one key.
func (f *follower) take(revision uint64, c change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision < f.mu.next {
		return fmt.Errorf("revision %d came, after those before %d", revision, f.mu.next)
	}
	f.mu.seen[revision], f.mu.next = c, revision+1
	return nil
}

// progress takes the news that everything up to a revision has come.
func (f *follower) progress(revision uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.next = max(f.mu.next, revision+1)
}

// skip takes the news that history is gone.
func (f *follower) skip(compacted uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if compacted <= f.mu.next {
		return fmt.Errorf("compacted up to %d, but the watch is at %d", compacted, f.mu.next)
	}
	f.mu.gaps = append(f.mu.gaps, [2]uint64{f.mu.next, compacted})
	f.mu.next = compacted
	return nil
}

// judge compares what came with all changes up to a revision, and returns an error that is
// hopeless unless more may come.
func (f *follower) judge(changes map[uint64]change, first, last uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.wrong != nil {
		return hopeless{fmt.Errorf("%s: %w", f.name, f.mu.wrong)}
	}
	if f.mu.next <= last {
		return fmt.Errorf("%s is at revision %d of %d", f.name, f.mu.next, last)
	}
	for revision := first; revision <= last; revision++ {
		want, there := changes[revision]
		got, came := f.mu.seen[revision]
		switch {
		case there && !came && !f.inGapLocked(revision):
			return hopeless{fmt.Errorf("%s missed revision %d: %s=%q", f.name, revision, want.key, want.value)}
		case came && (!there || got.key != want.key || got.value != want.value || got.deleted != want.deleted):
			return hopeless{fmt.Errorf("%s saw %s=%q (deleted %v) at revision %d, which was %s=%q (deleted %v)",
				f.name, got.key, got.value, got.deleted, revision, want.key, want.value, want.deleted)}
		}
	}
	return nil
}

func (f *follower) inGapLocked(revision uint64) bool {
	for _, g := range f.mu.gaps {
		if revision >= g[0] && revision < g[1] {
			return true
		}
	}
	return false
}

// seenBy returns what followers saw of each revision. If they saw different things, one of
// them will be found wrong.
func seenBy(all []*follower) map[uint64]change {
	out := make(map[uint64]change)
	for _, f := range all {
		f.mu.Lock()
		maps.Copy(out, f.mu.seen)
		f.mu.Unlock()
	}
	return out
}

// watchNative follows through kvd's own API, each time at another member.
func watchNative(members []*member, random *rand.Rand) func(context.Context, *follower) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context, f *follower) error {
		m := pick(random, members)
		url := fmt.Sprintf("%s/v1/watch?prefix=%s&from_revision=%d", m.url(), keyPrefix, f.at())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil // the node is down
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusGone {
			if resp.StatusCode != http.StatusServiceUnavailable {
				return fmt.Errorf("%v: %s", m, resp.Status)
			}
			return nil
		}
		lines := bufio.NewReader(resp.Body)
		for {
			line, err := lines.ReadString('\n')
			if resp.StatusCode == http.StatusGone && line != "" {
				line, err = strings.Replace(line, "{", `{"type":"compacted",`, 1), nil
			}
			if err != nil {
				return nil // the stream ended, or broke in the middle of a line
			}
			if err := f.takeLine(line); err != nil || resp.StatusCode == http.StatusGone {
				return err
			}
		}
	}
}

func (f *follower) takeLine(line string) error {
	var e struct {
		Type        string
		Key, Value  string
		Revision    uint64
		ModRevision uint64 `json:"mod_revision"`
		Compacted   uint64 `json:"compact_revision"`
	}
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	switch e.Type {
	case "progress":
		f.progress(e.Revision)
		return nil
	case "compacted":
		return f.skip(e.Compacted)
	case "put", "delete":
		return f.take(e.ModRevision, change{key: e.Key, value: e.Value, deleted: e.Type == "delete"})
	}
	return fmt.Errorf("a line is %s", line)
}

// watchEtcd follows through the API of etcd.
func watchEtcd(c *clientv3.Client) func(context.Context, *follower) error {
	return func(ctx context.Context, f *follower) error {
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		defer cancel()
		for r := range c.Watch(ctx, keyPrefix, clientv3.WithPrefix(), clientv3.WithRev(int64(f.at())), clientv3.WithProgressNotify()) {
			switch {
			case r.CompactRevision > 0:
				return f.skip(uint64(r.CompactRevision))
			case r.Err() != nil && r.Err() != rpctypes.ErrNoLeader && !temporary(r.Err()):
				return r.Err()
			case r.Err() != nil:
				return nil
			case r.IsProgressNotify():
				f.progress(uint64(r.Header.GetRevision()))
			}
			for _, e := range r.Events {
				kv := e.GetKv()
				c := change{key: string(kv.GetKey()), value: string(kv.GetValue()), deleted: e.GetType() == clientv3.EventTypeDelete}
				if err := f.take(uint64(kv.GetModRevision()), c); err != nil {
					return err
				}
			}
		}
		return nil
	}
}
