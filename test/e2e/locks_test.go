package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// held is the answer to a request for a lock.
type held struct {
	Lease, Token uint64
}

// takeLock asks for the lock until it is granted.
func takeLock(t *testing.T, m *member, query string) (h held) {
	t.Helper()
	eventually(t, "the lock", func() error {
		a := send(m, "POST", "/v1/locks/guard?"+query, m.String())
		if a.err != nil || a.status != 200 {
			return fmt.Errorf("%v", a)
		}
		return json.Unmarshal([]byte(a.body), &h)
	})
	return h
}

// guarded is what a lock protects: it refuses a token below the greatest it has seen.
type guarded struct {
	mu       sync.Mutex
	greatest uint64
	holders  map[uint64]string
}

var errStaleToken = errors.New("the token is stale")

func (g *guarded) write(token uint64, by string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if token < g.greatest {
		return errStaleToken
	}
	if other, taken := g.holders[token]; taken && other != by {
		return fmt.Errorf("%s and %s hold the lock with token %d", other, by, token)
	}
	g.greatest, g.holders[token] = token, by
	return nil
}

// TestLockOutlivesPauses pauses, for longer than the lease lives, first the holder of a
// lock, which then does nothing, and then the leader. No token has two holders, each one
// is greater than those before it, and what is protected refuses the old ones.
func TestLockOutlivesPauses(t *testing.T) {
	c := newCluster(t, 3, quick...)
	g := &guarded{holders: make(map[uint64]string)}
	last := held{}
	for round := range 3 {
		leader := c.leader()
		other := c.followers()[round%2]
		first := takeLock(t, other, "ttl=1s&wait=20s")
		if err := g.write(first.Token, fmt.Sprintf("holder %d", round)); err != nil {
			t.Fatal(err)
		}
		if first.Token <= last.Token {
			t.Fatalf("token %d after %d", first.Token, last.Token)
		}
		if round > 0 {
			leader.pause() // and with it the only clock that knows when the lease ends
		}
		next := takeLock(t, other, "ttl=30s&wait=20s")
		if err := g.write(next.Token, fmt.Sprintf("successor %d", round)); err != nil || next.Token <= first.Token {
			t.Fatalf("token %d after %d: %v", next.Token, first.Token, err)
		}
		if round > 0 {
			leader.resume()
		}
		// The first holder wakes up and believes that it still holds the lock.
		if err := g.write(first.Token, fmt.Sprintf("holder %d", round)); !errors.Is(err, errStaleToken) {
			t.Fatalf("the old holder's write: %v", err)
		}
		eventually(t, "an answer to the old holder's release", func() error {
			a := send(other, "DELETE", fmt.Sprintf("/v1/locks/guard?lease=%d", first.Lease), "")
			if a.err == nil && a.status == 204 {
				t.Fatal("an old lease has released the lock of its successor")
			}
			if a.code() != "lock_not_found" {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
		eventually(t, "the release", func() error {
			a := send(other, "DELETE", fmt.Sprintf("/v1/locks/guard?lease=%d", next.Lease), "")
			if a.err != nil || a.status != 204 && a.code() != "lock_not_found" {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
		last = next
	}
}
