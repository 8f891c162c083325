package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/kvd-io/kvd/internal/proof"
)

// watchLine is a line of a watch.
type watchLine struct {
	Type        string
	Value       string
	ModRevision uint64 `json:"mod_revision"`
	Revision    uint64
}

// resumedWatch is a client that watches one node after another.
type resumedWatch struct {
	next   uint64 // the revision to resume at
	values int    // how many were seen, which is the next one
	last   watchLine
}

// follow reads the stream of a node from where the client is, until the stream ends or
// all values have been seen.
func (w *resumedWatch) follow(m *member, all int) error {
	resp, err := http.Get(fmt.Sprintf("%s/v1/watch?key=counted&from_revision=%d", m.url(), w.next))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%v: %s", m, resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for w.values < all && lines.Scan() {
		w.last = watchLine{}
		if err := json.Unmarshal(lines.Bytes(), &w.last); err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if err := w.take(); err != nil {
			return err
		}
	}
	return lines.Err()
}

// take checks that a line continues what came before.
func (w *resumedWatch) take() error {
	l := &w.last
	switch {
	case l.Type == "progress":
		w.next = max(w.next, l.Revision+1)
		return nil
	case l.Type != "put" || l.Value != fmt.Sprint(w.values) || l.ModRevision < w.next:
		return fmt.Errorf("%+v, want the value %d at revision %d or later", *l, w.values, w.next)
	}
	w.values++
	w.next = l.ModRevision + 1
	return nil
}

// count writes the next n values through a member, each once.
func count(t *testing.T, m *member, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		eventually(t, fmt.Sprintf("value %d is written", i), func() error {
			a := send(m, http.MethodPut, "/v1/kv/counted", fmt.Sprint(i), "Idempotency-Key", fmt.Sprint("count-", i))
			if a.status != http.StatusOK && a.status != http.StatusCreated {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
	}
}

// TestWatchMovesOn: a client that watches a follower sees each change once: while the
// leader is killed, when its own node stops, where the stream ends with a progress, and at
// another node, where it resumes.
func TestWatchMovesOn(t *testing.T) {
	const values = 40
	c := newCluster(t, 3, quick...)
	leader := c.leader()
	followers := c.followers()
	w := &resumedWatch{next: 1}
	ended := make(chan error, 1)
	go func() { ended <- w.follow(followers[0], 4*values) }()
	count(t, followers[1], 0, values)
	leader.kill()
	count(t, followers[1], values, values)
	leader.start()
	leader.awaitReady()
	followers[0].stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if w.last.Type != "progress" || w.values != 2*values {
		t.Fatalf("the stream of a node that stopped had %d values and ended with %+v", w.values, w.last)
	}
	count(t, followers[1], 2*values, values)
	if err := w.follow(leader, 3*values); err != nil {
		t.Fatal(err)
	}
	proof.Judged(t, w.values)
	followers[0].start()
	followers[0].awaitReady()
}
