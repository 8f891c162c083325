package node

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/backup"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// rootGate enables rights with a password of root, and returns the gate before a node.
func (n *testNode) rootGate(t *testing.T, password string) *access.Gate {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	r, err := n.Do(testContext(t), &kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{
		PutUser: &rights.User{Name: rights.Root, Hash: hash, Roles: []string{rights.Root}}, Enable: true,
	}}, nil)
	if err != nil || r.Outcome != kvstore.OK {
		t.Fatalf("%+v, %v", r, err)
	}
	return NewGate(n.Node, access.Options{})
}

// login returns the token of a login that is good.
func login(t *testing.T, g *access.Gate, password string) string {
	t.Helper()
	token, _, err := g.Login(testContext(t), rights.Root, password, "somewhere")
	if err == nil {
		err = takes(t, g, token)
	}
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func takes(t *testing.T, g *access.Gate, token string) error {
	t.Helper()
	c, err := g.Identify(testContext(t), &access.Credentials{Authorization: "Bearer " + token})
	if err == nil && c.User != rights.Root {
		return fmt.Errorf("the token is %q's", c.User)
	}
	return err
}

// TestLoginsEndAtARestore: a restored cluster refuses what a key of the old one has signed,
// which is more than anybody can forge with the backup, and makes a key of its own. This
// holds for a body out of a data directory, too, which has the keys.
func TestLoginsEndAtARestore(t *testing.T) {
	const password = "a-secret"
	m := startCluster(t, 1, memoryEngine)[0]
	token := login(t, m.rootGate(t, password), password)
	hash := m.Store().Rights().User(rights.Root).Hash
	bodies := make(map[string]*bytes.Buffer)
	for name, write := range map[string]func(*bytes.Buffer) error{
		"a backup": func(b *bytes.Buffer) error { return m.Snapshot(t.Context(), b) },
		"a body for replicas": func(b *bytes.Buffer) error {
			v, err := m.Store().View()
			if err != nil {
				return err
			}
			defer v.Close()
			_, err = v.WriteTo(b)
			return err
		},
	} {
		bodies[name] = new(bytes.Buffer)
		if err := write(bodies[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "backup")
			if _, _, err := backup.Save(file, body); err != nil {
				t.Fatal(err)
			}
			restored := startAll(t, restoredCluster(t, file, 1, 1, "memory"))[0]
			g := NewGate(restored.Node, access.Options{})
			if u := restored.Store().Rights().User(rights.Root); u == nil || !bytes.Equal(u.Hash, hash) {
				t.Fatalf("root is %+v", u)
			}
			if err := takes(t, g, token); err == nil {
				t.Error("a login of the old cluster is taken")
			}
			login(t, g, password)
			if err := takes(t, g, token); err == nil {
				t.Error("a login of the old cluster is taken after one of the new cluster")
			}
		})
	}
}

// TestLoginsElsewhereAfterASnapshot: a member that has its state from a snapshot takes the
// logins that others have signed before, and signs such itself.
func TestLoginsElsewhereAfterASnapshot(t *testing.T) {
	const password = "a-secret"
	m, logs := observed(t, Config{TickInterval: 20 * time.Millisecond})
	first := m.rootGate(t, password)
	token := login(t, first, password)
	j := start(t, Config{DataDir: t.TempDir(), Engine: "pebble", ListenPeer: freeURL(t), JoinURLs: m.peerURL(), TickInterval: 20 * time.Millisecond})
	j.awaitReady(t)
	if about(logs, "snapshot sent") == 0 {
		t.Fatal("the member did not catch up by a snapshot")
	}
	second := NewGate(j.Node, access.Options{})
	if err := takes(t, second, token); err != nil {
		t.Error(err)
	}
	keys := len(m.Store().Rights().Keys())
	other := login(t, second, password)
	if err := takes(t, first, other); err != nil {
		t.Error(err)
	}
	if got := len(m.Store().Rights().Keys()); got != keys || keys != 1 {
		t.Errorf("%d keys, then %d: the member does not sign with the one that there is", keys, got)
	}
}
