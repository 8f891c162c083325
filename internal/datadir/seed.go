package datadir

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/limits"
)

// A cluster may begin with the state of a backup, its seed. Each of its initial
// members that is to found the cluster gets a directory with the same seed: the file
// seed.db, and its name in member.json. The charter of the cluster states the name of
// the seed, and a directory adopts only a charter with its own (F2). So the members
// begin with equal states, or not together.
//
// member.json is written last. A directory with a seed file and no identity is what
// an interrupted restore left: Open refuses it, and another restore begins anew.

// seedFormat is the version of what a member does with a seed before its first entry.
// It is part of the seed's name: binaries that would make different states of the
// same file do not found a cluster together.
const seedFormat = "1"

const seedFile = "seed.db"

// SeedPath returns where a restored directory has the state that its cluster will
// begin with.
func SeedPath(dir string) string { return filepath.Join(dir, seedFile) }

// Seed names the state that the directory's cluster must begin with. It is empty for
// any directory that was not restored.
func (d *Dir) Seed() string {
	if d.identity == nil {
		return ""
	}
	return d.identity.Seed
}

// ReadSeed passes the directory's seed to restore, and makes sure that it is the one
// that the charter names.
func (d *Dir) ReadSeed(restore func(io.Reader) error) error {
	path := SeedPath(d.path)
	format, sum, _ := strings.Cut(d.Seed(), "-")
	if format != seedFormat {
		return fmt.Errorf("%s was restored by a version of kvd that starts a cluster differently (%q, not %q): use that version to start it", d.path, format, seedFormat)
	}
	f, err := os.Open(path)
	if err != nil {
		return d.refuseSeed(err)
	}
	defer f.Close()
	h := sha256.New()
	if err := restore(io.TeeReader(f, h)); err != nil {
		return d.refuseSeed(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return d.refuseSeed(fmt.Errorf("its SHA-256 is %s, want %s", got, sum))
	}
	return nil
}

func (d *Dir) refuseSeed(cause error) error {
	return &RefusedError{File: SeedPath(d.path), Reason: fmt.Sprintf("the copy of the backup is damaged or lost: %v", cause), Remedy: RemoveAndReAdd, Cause: cause}
}

// DropSeed removes the seed, which nobody needs once the log has begun.
func (d *Dir) DropSeed() error {
	err := os.Remove(SeedPath(d.path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// checkRestored refuses what an interrupted restore left: a start would found an empty
// cluster with it.
func checkRestored(dir string) error {
	for _, left := range []string{SeedPath(dir), SeedPath(dir) + ".tmp"} {
		if exists(left) {
			return &RefusedError{File: left, Reason: "a restore into this directory was interrupted", Remedy: "run kvd snapshot restore again, or empty the directory"}
		}
	}
	return nil
}

// Planting is what Plant needs to know.
type Planting struct {
	MemberID uint64
	// Rendezvous is that of the settings that the member must be started with; 0
	// accepts any.
	Rendezvous uint64
	// Body writes the backup.
	Body io.WriterTo
	// Verify checks the copy before it counts.
	Verify func(io.Reader) error
}

// Plant makes a directory in which a member of a new cluster begins with the state of
// a backup. The directory must not exist or be empty; what an earlier, interrupted call
// left does not count. After an error or a crash, no node starts from the directory.
func Plant(path string, p Planting) (err error) {
	if !limits.ValidMemberID(p.MemberID) {
		return fmt.Errorf("id %d is not between 1 and 2^53-1", p.MemberID)
	}
	if err := checkEmpty(path); err != nil {
		return err
	}
	if err := makePrivate(path); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	d, err := lockDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := checkEmpty(path); err != nil { // now nobody else can fill it
		return err
	}
	seed, err := writeSeed(path, &p)
	if err != nil {
		return err
	}
	return d.write(Identity{Format: identityFormat, MemberID: p.MemberID, Rendezvous: p.Rendezvous, Nonce: d.Nonce(), State: StateNew, Seed: seed})
}

// writeSeed copies the backup, verifies the copy, and returns its name.
func writeSeed(dir string, p *Planting) (name string, err error) {
	written, read := sha256.New(), sha256.New()
	verify := func(r io.Reader) error {
		if err := p.Verify(io.TeeReader(r, read)); err != nil {
			return err
		}
		if !slices.Equal(written.Sum(nil), read.Sum(nil)) {
			return errors.New("the file does not contain what was written to it")
		}
		return nil
	}
	if _, err := replaceVerified(SeedPath(dir), roomyBody{dir, teeTo{p.Body, written}}, verify); err != nil {
		return "", fmt.Errorf("copy the backup: %w", err)
	}
	return seedFormat + "-" + hex.EncodeToString(written.Sum(nil)), nil
}

// teeTo writes a body to two writers.
type teeTo struct {
	body io.WriterTo
	also io.Writer
}

func (t teeTo) WriteTo(w io.Writer) (int64, error) { return t.body.WriteTo(io.MultiWriter(w, t.also)) }

// leftByRestore reports whether a file is one that an interrupted restore may leave in a
// directory that has no identity yet.
func leftByRestore(name string) bool {
	return strings.HasPrefix(name, seedFile) || name == filepath.Base(identityPath("")+".tmp")
}

// checkEmpty refuses a directory with content. A lock file is none, and neither is
// what file systems put into their root.
func checkEmpty(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	restoring := !exists(identityPath(path))
	for _, e := range entries {
		name := e.Name()
		if name == filepath.Base(lockPath("")) || name == "lost+found" || restoring && leftByRestore(name) {
			continue
		}
		return &RefusedError{File: filepath.Join(path, name), Reason: "the directory is not empty", Remedy: "restore into an empty directory"}
	}
	return nil
}
