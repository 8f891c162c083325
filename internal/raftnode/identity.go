package raftnode

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The states of a data directory.
const (
	// StateNew: the directory has a nonce, but no log yet.
	StateNew = "new"
	// StateAdmitted: it has a log, and has taken part.
	StateAdmitted = "admitted"
	// StateRemoved: its member was removed for good.
	StateRemoved = "removed"
)

// Identity says whose a data directory is. It is kept in member.json.
type Identity struct {
	Format    int    `json:"format"`
	MemberID  uint64 `json:"member_id"`
	Name      string `json:"name,omitempty"`
	ClusterID uint64 `json:"cluster_id"`
	// Nonce is 128 random bits: it tells this directory from a wiped one of
	// the same member.
	Nonce string `json:"nonce"`
	State string `json:"state"`
}

const identityFormat = 1

func newNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Directory is a locked data directory.
type Directory struct {
	path     string
	lock     *os.File
	identity *Identity
}

// OpenDirectory makes the directory if need be (mode 0700), locks it, and
// reads whose it is. A directory in use by another process is an error that
// names it and the process.
func OpenDirectory(path string) (*Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	d := &Directory{path: path, lock: lock}
	if err := d.read(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

func lockDirectory(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32)) // only to be helpful
		_ = f.Close()
		return nil, fmt.Errorf("the data directory %s is in use by another process (pid %s): stop it, or choose another --data-dir", path, strings.TrimSpace(string(holder)))
	}
	if err := f.Truncate(0); err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the lock of the data directory: %w", err), f.Close())
	}
	return f, nil
}

func (d *Directory) read() error {
	b, err := os.ReadFile(d.identityPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the identity of the data directory: %w", err)
	}
	id, err := parseIdentity(b)
	if err != nil {
		return &RefusedError{File: d.identityPath(), Reason: err.Error(), Remedy: RemoveAndReAdd}
	}
	d.identity = &id
	return nil
}

func parseIdentity(b []byte) (Identity, error) {
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("unreadable: %w", err)
	}
	if id.Format != identityFormat {
		return id, fmt.Errorf("format %d is not known to this binary, which knows %d", id.Format, identityFormat)
	}
	if !validID(id.MemberID) || id.Nonce == "" {
		return id, errors.New("names no member")
	}
	return id, nil
}

func (d *Directory) identityPath() string { return filepath.Join(d.path, "member.json") }

// Identity returns whose the directory is; known is false for a fresh one.
func (d *Directory) Identity() (id Identity, known bool) {
	if d.identity == nil {
		return Identity{}, false
	}
	return *d.identity, true
}

// HasLog reports whether the directory holds a log.
func (d *Directory) HasLog() bool { return diskExists(d.path) }

// Claim makes the directory the member's. The nonce of a directory that was
// claimed before stays.
func (d *Directory) Claim(member, cluster uint64, name string) error {
	nonce := newNonce()
	if d.identity != nil {
		nonce = d.identity.Nonce
	}
	return d.write(Identity{Format: identityFormat, MemberID: member, Name: name, ClusterID: cluster, Nonce: nonce, State: StateNew})
}

// MarkAdmitted notes that the directory has a log from now on.
func (d *Directory) MarkAdmitted() error { return d.mark(StateAdmitted) }

// MarkRemoved notes that the member was removed: the directory can not be
// used again.
func (d *Directory) MarkRemoved() error { return d.mark(StateRemoved) }

func (d *Directory) mark(state string) error {
	if d.identity == nil || d.identity.State == state {
		return nil
	}
	id := *d.identity
	id.State = state
	return d.write(id)
}

func (d *Directory) write(id Identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFileDurably(d.identityPath(), append(b, '\n')); err != nil {
		return fmt.Errorf("write the identity of the data directory: %w", err)
	}
	d.identity = &id
	return nil
}

// Close releases the lock.
func (d *Directory) Close() error { return d.lock.Close() }

// writeFileDurably replaces a small file: to a temporary name, fsync, rename,
// fsync of the directory. A crash leaves the old content or the new.
func writeFileDurably(path string, content []byte) (err error) {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
