package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Dir is a data directory that this process holds the lock of. It is used by
// one goroutine at a time.
type Dir struct {
	path     string
	lock     *os.File
	identity *Identity // nil until the directory is claimed
	nonce    string    // of a directory without an identity, once it is drawn
}

// Open creates the directory if necessary, makes it private (mode 0700), locks
// it, and reads its identity. A directory that another process holds is an
// error that names the directory and the process. A directory that a node must
// not use is a *RefusedError.
func Open(path string) (*Dir, error) {
	if err := makePrivate(path); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	d, err := lockDir(path)
	if err != nil {
		return nil, err
	}
	err = d.read()
	if err == nil {
		id, _ := d.Identity()
		err = errors.Join(id.checkOwned(path), id.checkUsable(path))
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// makePrivate creates the directory and revokes everybody else's rights to it.
func makePrivate(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(path, 0o700); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(filepath.Clean(path)))
}

// lockDir takes the lock without waiting. The pid in the file is only for
// messages; the kernel's lock decides, and it vanishes with the process. So a
// crash leaves no stale lock.
func lockDir(path string) (*Dir, error) {
	f, err := os.OpenFile(lockPath(path), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := readHolder(f)
		_ = f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", path, err)
		}
		return nil, fmt.Errorf("data directory %s is in use by another process (pid %s): stop that process or choose another --data-dir", path, holder)
	}
	if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write lock file: %w", err), f.Close())
	}
	return &Dir{path: path, lock: f}, nil
}

func lockPath(dir string) string { return filepath.Join(dir, "lock") }

// readHolder returns the pid that the lock file names.
func readHolder(f io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}

// lockHolder returns the pid of the process that holds the directory, or "".
// It changes nothing.
func lockHolder(dir string) (string, error) {
	f, err := os.Open(lockPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() // releases the shared lock, if it was granted
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return readHolder(f), nil
	}
	return "", err
}

// read reads the identity, and refuses a directory with an unfinished recovery or
// a lost log.
func (d *Dir) read() error {
	if err := checkNotRecovering(d.path); err != nil {
		return err
	}
	id, err := identify(d.path)
	if id != (Identity{}) {
		d.identity = &id
	}
	return err
}

// Path returns the directory's path, as it was given to Open.
func (d *Dir) Path() string { return d.path }

// StorePath returns where the engine keeps its files in a data directory.
func StorePath(dir string) string { return filepath.Join(dir, storeName) }

const storeName = "store"

// Identity returns whose directory it is. known is false until it is claimed.
func (d *Dir) Identity() (id Identity, known bool) {
	if d.identity == nil {
		return Identity{}, false
	}
	return *d.identity, true
}

// HasLog reports whether the directory holds a log.
func (d *Dir) HasLog() bool { return hasLog(d.path) }

// Claim assigns the directory to a member of an existing cluster, whose settings
// yield the given rendezvous id (0 if unknown). A directory that was claimed
// before keeps its nonce: the cluster may have committed it already, and would
// refuse another one. A seed no longer counts: the cluster sends its state.
func (d *Dir) Claim(member, cluster, rendezvous uint64, name string) error {
	return d.write(Identity{Format: identityFormat, MemberID: member, Name: name, ClusterID: cluster, Rendezvous: rendezvous, Nonce: d.Nonce(), State: StateNew})
}

// Nonce returns the directory's nonce. A new one becomes durable with the next
// write of the identity.
func (d *Dir) Nonce() string {
	switch {
	case d.identity != nil:
		return d.identity.Nonce
	case d.nonce == "":
		d.nonce = NewNonce()
	}
	return d.nonce
}

// Founding returns what the directory promised and accepted as an acceptor.
func (d *Dir) Founding() Founding {
	if d.identity == nil || d.identity.Founding == nil {
		return Founding{}
	}
	return *d.identity.Founding
}

// KeepFounding makes what an initial member promised and accepted durable. The
// directory must not belong to a cluster.
func (d *Dir) KeepFounding(member, rendezvous uint64, name string, f Founding) error {
	if d.identity != nil && d.identity.ClusterID != 0 {
		return fmt.Errorf("take part in founding a cluster: %s already belongs to cluster %016x", d.path, d.identity.ClusterID)
	}
	return d.write(Identity{Format: identityFormat, MemberID: member, Name: name, Rendezvous: rendezvous, Nonce: d.Nonce(), State: StateNew, Seed: d.Seed(), Founding: &f})
}

// Adopt gives the directory to the cluster of the charter, for good. The charter
// must name the directory, and its seed.
func (d *Dir) Adopt(member, rendezvous uint64, name string, c *Charter) error {
	switch {
	case d.identity != nil && d.identity.ClusterID == c.ClusterID:
		return nil
	case d.identity != nil && d.identity.ClusterID != 0:
		return fmt.Errorf("adopt a charter: %s already belongs to cluster %016x", d.path, d.identity.ClusterID)
	case !c.Names(member, d.Nonce()):
		return fmt.Errorf("adopt a charter: it does not name the directory %s", d.path)
	case c.Seed != d.Seed():
		return fmt.Errorf("adopt a charter: it begins with seed %q, and %s has seed %q", c.Seed, d.path, d.Seed())
	}
	f := d.Founding()
	f.Charter = c
	return d.write(Identity{Format: identityFormat, MemberID: member, Name: name, ClusterID: c.ClusterID, Rendezvous: rendezvous, Nonce: d.Nonce(), State: StateNew, Seed: d.Seed(), Founding: &f})
}

// KeepEngine records which engine keeps the state.
func (d *Dir) KeepEngine(name string) error {
	if d.identity == nil || d.identity.Engine == name {
		return nil
	}
	id := *d.identity
	id.Engine = name
	return d.write(id)
}

// MarkStarted records one more start, and that the directory has a log: from then
// on a missing log is a refusal. It must be durable before the process takes part.
func (d *Dir) MarkStarted() error {
	id := *d.identity
	id.State = StateAdmitted
	id.Starts++
	return d.write(id)
}

// MarkRemoved records that the member was removed, and that the directory can
// never be used again.
func (d *Dir) MarkRemoved() error { return d.end(StateRemoved) }

// MarkStale records that the cluster refuses the directory as an older copy, or one of
// two. The cluster tells copies apart by their counts of starts, and each attempt to
// start counts: without the record, a later one would pass.
func (d *Dir) MarkStale() error { return d.end(StateStale) }

// end records a state after which there is no start.
func (d *Dir) end(state string) error {
	if d.identity == nil || d.identity.State == state {
		return nil
	}
	id := *d.identity
	id.State = state
	return d.write(id)
}

func (d *Dir) write(id Identity) error {
	if err := id.write(d.path); err != nil {
		return err
	}
	d.identity = &id
	return nil
}

// Close releases the lock.
func (d *Dir) Close() error { return d.lock.Close() }
