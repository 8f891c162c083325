package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kvd-io/kvd/internal/limits"
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

// Identity says whose a data directory is. It is kept in member.json, with a
// checksum.
type Identity struct {
	Format    int    `json:"format"`
	MemberID  uint64 `json:"member_id"`
	Name      string `json:"name,omitempty"`
	ClusterID uint64 `json:"cluster_id"`
	// Nonce is 128 random bits: it tells this directory from a wiped one of
	// the same member.
	Nonce string `json:"nonce"`
	State string `json:"state"`
	// Original is the id of the cluster before its first recovery, which its
	// settings still name; 0 where there was none.
	Original uint64 `json:"original_cluster_id,omitempty"`
}

const identityFormat = 1

// identityFile is the content of member.json.
type identityFile struct {
	Identity
	CRC32C uint32 `json:"crc32c"`
}

func (id Identity) checksum() uint32 {
	b := fmt.Appendf(nil, "%d %d %q %d %s %s", id.Format, id.MemberID, id.Name, id.ClusterID, id.Nonce, id.State)
	if id.Original != 0 {
		b = fmt.Appendf(b, " %d", id.Original)
	}
	return crc32.Checksum(b, castagnoli)
}

func identityPath(dir string) string { return filepath.Join(dir, "member.json") }

const nonceBytes = 16

// NewNonce returns 128 random bits in hexadecimal.
func NewNonce() string {
	var b [nonceBytes]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Dir is a locked data directory.
type Dir struct {
	path     string
	lock     *os.File
	identity *Identity
}

// Open makes the directory if need be, keeps others out of it (mode
// 0700), locks it, and reads whose it is. A directory in use by another
// process is an error that names it and the process; one whose member has
// taken part and whose log is gone is a *RefusedError.
func Open(path string) (*Dir, error) {
	if err := makePrivate(path); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, lock: lock}
	if err := d.read(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// makePrivate makes the directory and takes everybody else's rights away.
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

func lockDirectory(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := readHolder(f)
		_ = f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory %s: %w", path, err)
		}
		return nil, fmt.Errorf("the data directory %s is in use by another process (pid %s): stop it, or choose another --data-dir", path, holder)
	}
	if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the lock of the data directory: %w", err), f.Close())
	}
	return f, nil
}

// readHolder returns the process that wrote itself into the lock file last.
func readHolder(f io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}

// lockHolder returns the process that holds the directory, empty when there is
// none. It changes nothing.
func lockHolder(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() // and with it the lock, if there was none
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return readHolder(f), nil
	}
	return "", err
}

func (d *Dir) read() error {
	if err := checkNotRecovering(d.path); err != nil {
		return err
	}
	id, err := readIdentity(d.path)
	if err != nil {
		return err
	}
	if id != (Identity{}) {
		d.identity = &id
	}
	return id.checkLog(d.path)
}

// checkLog refuses a directory whose member has taken part but has no log.
func (id Identity) checkLog(dir string) error {
	if id.State == StateAdmitted && !hasLog(dir) {
		return refuse(walDir(dir), "member %d has taken part, but its log is missing", id.MemberID)
	}
	return nil
}

// readIdentity returns the zero Identity for a directory without one. A
// damaged one is a *RefusedError: it is replaced by renaming, so that no crash
// can damage it.
func readIdentity(dir string) (Identity, error) {
	path := identityPath(dir)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Identity{}, nil
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read the identity of the data directory: %w", err)
	}
	var f identityFile
	if err := json.Unmarshal(b, &f); err != nil || f.CRC32C != f.checksum() {
		return Identity{}, refuse(path, "the identity of the directory is damaged")
	}
	if f.Format != identityFormat {
		return Identity{}, fmt.Errorf("%s has format %d, this binary knows %d: upgrade it", path, f.Format, identityFormat)
	}
	if what := f.check(); what != "" {
		return Identity{}, refuse(path, "%s", what)
	}
	return f.Identity, nil
}

func (id Identity) check() (what string) {
	nonce, err := hex.DecodeString(id.Nonce)
	switch {
	case !limits.ValidMemberID(id.MemberID):
		return fmt.Sprintf("%d is not the id of a member", id.MemberID)
	case err != nil || len(nonce) != nonceBytes:
		return "the nonce is not 128 bits in hexadecimal"
	case id.State != StateNew && id.State != StateAdmitted && id.State != StateRemoved:
		return fmt.Sprintf("the state %q is not known", id.State)
	}
	return ""
}

// Path returns where the directory is.
func (d *Dir) Path() string { return d.path }

// Identity returns whose the directory is; known is false for a fresh one.
func (d *Dir) Identity() (id Identity, known bool) {
	if d.identity == nil {
		return Identity{}, false
	}
	return *d.identity, true
}

// HasLog reports whether the directory holds a log.
func (d *Dir) HasLog() bool { return hasLog(d.path) }

// Claim makes the directory the member's. The nonce of a directory that was
// claimed before stays.
func (d *Dir) Claim(member, cluster uint64, name string) error {
	nonce := NewNonce()
	if d.identity != nil {
		nonce = d.identity.Nonce
	}
	return d.write(Identity{Format: identityFormat, MemberID: member, Name: name, ClusterID: cluster, Nonce: nonce, State: StateNew})
}

// MarkAdmitted notes that the directory has a log from now on.
func (d *Dir) MarkAdmitted() error { return d.mark(StateAdmitted) }

// MarkRemoved notes that the member was removed: the directory can not be
// used again.
func (d *Dir) MarkRemoved() error { return d.mark(StateRemoved) }

func (d *Dir) mark(state string) error {
	if d.identity == nil || d.identity.State == state {
		return nil
	}
	id := *d.identity
	id.State = state
	return d.write(id)
}

func (d *Dir) write(id Identity) error {
	b, err := json.MarshalIndent(identityFile{id, id.checksum()}, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFileDurably(identityPath(d.path), append(b, '\n')); err != nil {
		return fmt.Errorf("write the identity of the data directory: %w", err)
	}
	d.identity = &id
	return nil
}

// Close releases the lock.
func (d *Dir) Close() error { return d.lock.Close() }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
