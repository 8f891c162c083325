package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
// lock, which then does nothing, then the leader, and then the node that the holder
// uses. No token has two holders, each one is greater than those before it, and what is
// protected refuses the old ones.
func TestLockOutlivesPauses(t *testing.T) {
	c := newCluster(t, 3, quick...)
	g := &guarded{holders: make(map[uint64]string)}
	last := held{}
	for round, pauses := range []string{"", "leader", "node", "leader"} {
		leader, followers := c.leader(), c.followers()
		other := followers[round%2]
		successor := other
		paused := leader // and with it the only clock that knows when the lease ends
		if pauses == "node" {
			paused, successor = other, followers[1-round%2]
		}
		first := takeLock(t, other, "ttl=1s&wait=20s")
		if err := g.write(first.Token, fmt.Sprintf("holder %d", round)); err != nil {
			t.Fatal(err)
		}
		if first.Token <= last.Token {
			t.Fatalf("token %d after %d", first.Token, last.Token)
		}
		if pauses != "" {
			paused.pause()
		}
		next := takeLock(t, successor, "ttl=30s&wait=20s")
		if err := g.write(next.Token, fmt.Sprintf("successor %d", round)); err != nil || next.Token <= first.Token {
			t.Fatalf("token %d after %d: %v", next.Token, first.Token, err)
		}
		if pauses != "" {
			paused.resume()
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

// holderScript is a process that holds a lock: it keeps its lease alive and writes to what
// the lock protects, until that refuses its token.
const holderScript = `
set -eu
lock=$(curl -sS -X POST "$KVD/v1/locks/guard?ttl=2s&wait=30s")
token=$(echo "$lock" | sed 's/.*"token":\([0-9]*\).*/\1/')
lease=$(echo "$lock" | sed 's/.*"lease":\([0-9]*\).*/\1/')
while true; do
	curl -sS -o /dev/null -X POST "$KVD/v1/leases/$lease/keepalive" || true
	code=$(curl -sS -o /dev/null -w '%{http_code}' -X POST "$GUARD/$token") || continue
	if [ "$code" = 409 ]; then exit 9; fi
	sleep 0.1
done`

// ServeHTTP takes a write with the token in its path.
func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, err := strconv.ParseUint(strings.TrimPrefix(r.URL.Path, "/"), 10, 64)
	if err == nil {
		err = g.write(token, "the process")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

func (g *guarded) newest() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.greatest
}

// TestPausedHolderIsFenced stops the process that holds a lock (SIGSTOP) for longer than
// its lease lives. When it continues, in the middle of what it did, its token is refused.
func TestPausedHolderIsFenced(t *testing.T) {
	t.Parallel()
	requireTool(t, "bash")
	requireTool(t, "curl")
	c := newCluster(t, 3, quick...)
	g := &guarded{holders: make(map[uint64]string)}
	guard := httptest.NewServer(g)
	t.Cleanup(guard.Close)
	holder := exec.Command("bash", "-c", holderScript)
	holder.Env = append(environment(), "KVD="+c.followers()[0].url(), "GUARD="+guard.URL)
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its curl stops with it
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	group := -holder.Process.Pid
	t.Cleanup(func() {
		_ = syscall.Kill(group, syscall.SIGKILL) // it may have ended
		_ = holder.Wait()
	})
	eventually(t, "the holder to write", func() error {
		if g.newest() == 0 {
			return errors.New("nothing was written")
		}
		return nil
	})
	first := g.newest()
	if err := syscall.Kill(group, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	next := takeLock(t, c.followers()[1], "ttl=60s&wait=30s")
	if err := g.write(next.Token, "the successor"); err != nil || next.Token <= first {
		t.Fatalf("token %d after %d: %v", next.Token, first, err)
	}
	if err := syscall.Kill(group, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := holder.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Fatalf("the holder ends with %v, want a refusal of its token", err)
	}
	if g.newest() != next.Token {
		t.Fatalf("the newest token is %d, want %d", g.newest(), next.Token)
	}
}
