package node

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/backup"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// backedUp is a backup of a cluster, which has ended.
type backedUp struct {
	file     string
	revision uint64
	cluster  string
	lock     kvstore.LockTicket // of "held", whose holder still has it
}

// takeLock asks for a lock, with a lease of its own.
func (n *testNode) takeLock(t *testing.T, name string) kvstore.LockTicket {
	t.Helper()
	r, err := n.Do(testContext(t), &kvstore.Command{Op: kvstore.OpLock, Key: []byte(name), TTLMillis: 3_600_000, Wait: true}, nil)
	if err != nil || r.Outcome != kvstore.OK {
		t.Fatalf("%+v, %v", r, err)
	}
	return *r.Lock
}

// mustHaveLock demands that the holder of a lock still holds it, and that the next
// one gets a token above all that the old cluster can have given since the backup.
func (b *backedUp) mustHaveLock(t *testing.T, m *testNode) {
	t.Helper()
	info, _, err := m.Store().Lock(b.lock.Name, 10)
	if err != nil || info.Holder.Token != b.lock.Token || info.Holder.Lease != b.lock.Lease {
		t.Errorf("the holder is %+v, %v; want %+v", info.Holder, err, b.lock)
	}
	other, waits := m.takeLock(t, "free"), m.takeLock(t, "held")
	if floor := b.lock.Token + kvstore.RaisedBy; other.Token <= floor || waits.Token <= other.Token || waits.Held {
		t.Errorf("tokens %d and %d after %d", other.Token, waits.Token, b.lock.Token)
	}
}

// backUp runs a cluster of one with some keys, and saves it.
func backUp(t *testing.T) backedUp {
	t.Helper()
	m := startCluster(t, 1, memoryEngine)[0]
	for i := range 20 {
		m.put(t, fmt.Sprint("k", i%10), fmt.Sprint("v", i))
	}
	holder := m.takeLock(t, "held")
	b := backedUp{lock: holder, file: filepath.Join(t.TempDir(), "backup"), revision: m.Store().Revision(), cluster: m.ClusterID()}
	var body bytes.Buffer
	if err := m.Snapshot(t.Context(), &body); err != nil {
		t.Fatal(err)
	}
	if info, _, err := backup.Save(b.file, &body); err != nil || info.Revision != b.revision || info.Keys != 10 {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	return b
}

// restoredCluster prepares n members, of which the first so many are restored.
func restoredCluster(t *testing.T, file string, n, restored int, engine string) (cfgs []Config) {
	t.Helper()
	var initial []Peer
	for i := range n {
		initial = append(initial, Peer{ID: uint64(i + 1), URL: freeURL(t)})
	}
	for i := range n {
		cfg := Config{ID: uint64(i + 1), DataDir: t.TempDir(), Engine: engine, ListenPeer: initial[i].URL, Initial: initial, TickInterval: 20 * time.Millisecond}
		if i < restored {
			if _, err := backup.Restore(backup.Restoring{File: file, DataDir: cfg.DataDir, ID: cfg.ID, Rendezvous: RendezvousID("", initial)}); err != nil {
				t.Fatal(err)
			}
		}
		cfgs = append(cfgs, cfg)
	}
	return cfgs
}

func startAll(t *testing.T, cfgs []Config) (members []*testNode) {
	t.Helper()
	for _, cfg := range cfgs {
		members = append(members, start(t, cfg))
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	return members
}

// mustHave demands that a member has the backup, under an identity of its own.
func (b *backedUp) mustHave(t *testing.T, m *testNode) {
	t.Helper()
	for i := range 10 {
		key := fmt.Sprint("k", i)
		if got := m.get(t, key); got != fmt.Sprint("v", i+10) {
			t.Errorf("%s is %q", key, got)
		}
		kv, _, err := m.Store().Get([]byte(key), 0)
		if err != nil || kv.CreateRevision != uint64(i+2) || kv.ModRevision != uint64(i+12) || kv.Version != 2 {
			t.Errorf("%s: %+v, %v", key, kv, err)
		}
	}
	if m.ClusterID() == b.cluster || m.ClusterID() == "" {
		t.Errorf("the cluster is %q, the old one was %q", m.ClusterID(), b.cluster)
	}
}

// TestRestore: a backup becomes a cluster of one or of three, with one new identity.
// Revisions go on far above, and all is still there after all members were restarted.
func TestRestore(t *testing.T) {
	b := backUp(t)
	for _, c := range []struct {
		members, restored int
		engine            string
	}{{1, 1, "pebble"}, {1, 1, "memory"}, {3, 3, "pebble"}, {3, 2, "memory"}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			cfgs := restoredCluster(t, b.file, c.members, c.restored, c.engine)
			members := startAll(t, cfgs)
			for _, m := range members {
				b.mustHave(t, m)
				if m.ClusterID() != members[0].ClusterID() {
					t.Errorf("clusters %s and %s", m.ClusterID(), members[0].ClusterID())
				}
			}
			b.mustHaveLock(t, members[0])
			members[0].put(t, "after", "v")
			if got, want := members[0].Store().Revision(), b.revision+kvstore.RaisedBy+1; got != want {
				t.Errorf("the next revision is %d, want %d", got, want)
			}
			for _, m := range members {
				if err := m.end(t); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(datadir.SeedPath(m.cfg.DataDir)); err == nil {
					t.Error("the seed is still there")
				}
				if r, err := Examine(m.cfg.DataDir); err != nil || r.Refused != nil {
					t.Errorf("the doctor says %s, %v", r.Verdict(), err)
				}
			}
			members = startAll(t, cfgs)
			for _, m := range members {
				b.mustHave(t, m)
				if got := m.get(t, "after"); got != "v" {
					t.Errorf("after: %q", got)
				}
			}
			mustAgree(t, members)
		})
	}
}

// mustAgree demands equal state hashes at equal positions.
func mustAgree(t *testing.T, members []*testNode) {
	t.Helper()
	eventually(t, "equal hashes", func() bool {
		hashes := make(map[string]bool)
		for _, m := range members {
			position, hash := m.Store().StateHash()
			hashes[fmt.Sprint(position, hash)] = true
		}
		return len(hashes) == 1
	})
}

// TestRestoredTwice: two clusters of one backup are two clusters.
func TestRestoredTwice(t *testing.T) {
	b := backUp(t)
	one := startAll(t, restoredCluster(t, b.file, 1, 1, "memory"))[0]
	two := startAll(t, restoredCluster(t, b.file, 1, 1, "memory"))[0]
	if one.ClusterID() == two.ClusterID() {
		t.Errorf("both are %s", one.ClusterID())
	}
}

// TestRestoredMinority: one restored member and two empty ones found nothing: without
// a majority that has the content, the cluster would be an empty one.
func TestRestoredMinority(t *testing.T) {
	b := backUp(t)
	core, logs := observer.New(zap.WarnLevel)
	for i, cfg := range restoredCluster(t, b.file, 3, 1, "memory") {
		cfg.Logger = zap.New(core)
		m := start(t, cfg)
		if i == 0 { // a majority that cannot reach it does found a cluster
			awaitListener(t, cfg.ListenPeer)
		}
		t.Cleanup(func() {
			if m.ClusterID() != "" {
				t.Errorf("member %d has cluster %s", m.cfg.ID, m.ClusterID())
			}
		})
	}
	said := func(text string) func() bool {
		return func() bool {
			return logs.Filter(func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, text) }).Len() > 0
		}
	}
	eventually(t, "the empty ones say why", said("and this one was not"))
	eventually(t, "the restored one says why", said("was not restored from the backup"))
}

// awaitListener waits until somebody listens at a URL.
func awaitListener(t *testing.T, address string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a listener at "+u.Host, func() bool {
		conn, err := net.Dial("tcp", u.Host)
		return err == nil && conn.Close() == nil
	})
}

// TestRestoredBesideTheOldCluster: a member of the old cluster still runs. The
// restored ones do not join it and do not lose their content to it.
func TestRestoredBesideTheOldCluster(t *testing.T) {
	old := startCluster(t, 3, memoryEngine)
	old[0].put(t, "k", "v")
	file := filepath.Join(t.TempDir(), "backup")
	var body bytes.Buffer
	if err := old[0].Snapshot(t.Context(), &body); err != nil {
		t.Fatal(err)
	}
	if _, _, err := backup.Save(file, &body); err != nil {
		t.Fatal(err)
	}
	for _, m := range old[1:] {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
	cfg := old[1].cfg
	cfg.DataDir = t.TempDir()
	if _, err := backup.Restore(backup.Restoring{File: file, DataDir: cfg.DataDir, ID: cfg.ID, Rendezvous: RendezvousID("", cfg.Initial)}); err != nil {
		t.Fatal(err)
	}
	err := start(t, cfg).awaitEnd(t)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), old[0].ClusterID()) {
		t.Fatalf("%v", err)
	}
	if _, err := os.Stat(datadir.SeedPath(cfg.DataDir)); err != nil {
		t.Error("the content of the backup is gone")
	}
}

// TestRestoreRefuses: what Restore does not accept leaves no trace; a directory that
// was restored for other settings, or whose copy of the backup is not the one that
// was verified, does not start.
func TestRestoreRefuses(t *testing.T) {
	b := backUp(t)
	whole, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Clone(whole)
	newer[8] = 99
	for name, body := range map[string][]byte{"a flipped bit": flipped(whole), "half": whole[:len(whole)/2], "newer": newer, "empty": nil} {
		file, dir := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "dir")
		if err := os.WriteFile(file, body, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Restore(backup.Restoring{File: file, DataDir: dir, ID: 1}); err == nil {
			t.Errorf("%s is restored", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s left a directory", name)
		}
	}
	cfgs := restoredCluster(t, b.file, 3, 1, "memory")
	other := cfgs[0]
	other.Token = "other"
	if err := start(t, other).awaitEnd(t); !errors.Is(err, ErrConfig) {
		t.Errorf("another token: %v", err)
	}
	joining := cfgs[0]
	joining.Join = true
	if err := start(t, joining).awaitEnd(t); !errors.Is(err, ErrConfig) {
		t.Errorf("--join: %v", err)
	}
	alone := restoredCluster(t, b.file, 1, 1, "pebble")[0]
	if err := os.WriteFile(datadir.SeedPath(alone.DataDir), flipped(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second start finds what the first one has written
		var refused *datadir.RefusedError
		if err := start(t, alone).awaitEnd(t); !errors.As(err, &refused) {
			t.Fatalf("a damaged copy: %v", err)
		}
	}
	if err := os.WriteFile(datadir.SeedPath(alone.DataDir), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	b.mustHave(t, startAll(t, []Config{alone})[0])
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// TestRestoredLogPromisesNothing: the log of a restored cluster does not hold its
// beginning. Without the snapshot, or without store and body, a start must not take
// the log for the whole story and serve an empty store.
func TestRestoredLogPromisesNothing(t *testing.T) {
	b := backUp(t)
	for _, lost := range [][]string{{"snap/*.snap"}, {"snap/*.snap.db", "store"}} {
		cfg := restoredCluster(t, b.file, 1, 1, "pebble")[0]
		if err := startAll(t, []Config{cfg})[0].end(t); err != nil {
			t.Fatal(err)
		}
		for _, pattern := range lost {
			files, err := filepath.Glob(filepath.Join(cfg.DataDir, pattern))
			if err != nil || len(files) != 1 || os.RemoveAll(files[0]) != nil {
				t.Fatal(pattern, files, err)
			}
		}
		var refused *datadir.RefusedError
		m := start(t, cfg)
		if err := m.awaitEnd(t); !errors.As(err, &refused) {
			t.Errorf("without %s: %v", lost, err)
		}
	}
}

// TestRestoreAfterACrash: the first start was interrupted when the store had the
// backup already, and the log nothing. The next start begins anew.
func TestRestoreAfterACrash(t *testing.T) {
	b := backUp(t)
	cfgs := append(restoredCluster(t, b.file, 1, 1, "pebble"), restoredCluster(t, b.file, 1, 1, "pebble")...)
	crashed := &Node{cfg: cfgs[0], lg: zap.NewNop(), failed: make(chan error, 1), watches: watch.New(watch.Options{})}
	dir, err := datadir.Open(cfgs[0].DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := crashed.openStore(); err != nil {
		t.Fatal(err)
	}
	if err := plant(dir, crashed.store, crashed.lg); err != nil {
		t.Fatal(err)
	}
	entry := kvstore.Entry{Index: crashed.store.Position().Index + 1, Term: 9, Records: []kvstore.Record{{Key: []byte("z"), Value: []byte{1}}}}
	if err := errors.Join(crashed.store.Apply([]kvstore.Entry{entry}), crashed.store.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	for _, m := range startAll(t, cfgs) {
		b.mustHave(t, m)
		if got, want := m.Store().Revision(), b.revision+kvstore.RaisedBy; got != want {
			t.Errorf("revision %d, want %d", got, want)
		}
	}
}
