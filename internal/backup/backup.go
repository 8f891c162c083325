// Package backup handles backups as files: it saves them, finds the body in them, and
// turns them into data directories of members of a new cluster (ADR 14).
package backup

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/padded"
)

// Restoring says which backup becomes what.
type Restoring struct {
	File    string
	DataDir string
	ID      uint64
	// Rendezvous is that of the settings that the node will be started with
	// (node.RendezvousID); with 0 the directory accepts any.
	Rendezvous uint64
	// Progress is told how many bytes more of the file were read, verified, or copied:
	// Passes times its size in all. nil means that nobody wants to know.
	Progress func(bytes int)
}

// Passes is how often Restore goes over the backup: to verify it, to copy it, and
// to verify the copy.
const Passes = 3

// counted tells Progress about what is read.
type counted struct {
	io.Reader
	progress func(bytes int)
}

// Read implements io.Reader.
func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.progress(n)
	return n, err
}

// Restore turns a backup into the data directory of a member of a new cluster. The
// cluster itself begins when its initial members are started (ADR 14). After an error
// or a crash, no node starts from the directory, and Restore can be called again.
func Restore(r Restoring) (info kvstore.BodyInfo, err error) {
	if r.Progress == nil {
		r.Progress = func(int) {}
	}
	f, err := os.Open(r.File)
	if err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	body, err := BodyIn(f)
	if err != nil {
		return info, fmt.Errorf("restore %s: %w", r.File, err)
	}
	if info, err = kvstore.VerifyBody(counted{body, r.Progress}); err != nil { // before anything is written
		return info, fmt.Errorf("restore %s: %w", r.File, err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	p := datadir.Planting{MemberID: r.ID, Rendezvous: r.Rendezvous, Body: bodyReader{counted{body, r.Progress}}, Verify: func(b io.Reader) error {
		_, err := kvstore.VerifyBody(counted{b, r.Progress})
		return err
	}}
	if err := datadir.Plant(r.DataDir, p); err != nil {
		return info, fmt.Errorf("restore %s into %s: %w", r.File, r.DataDir, err)
	}
	return info, nil
}

// BodyIn returns the body in the file of a backup, which etcdctl may have written.
func BodyIn(f *os.File) (io.ReadSeeker, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() { // a pipe has no size
		return f, nil
	}
	return padded.Body(f, st.Size())
}

// Save writes a backup to a file, which gets its name only if it is intact. It
// returns the size of the file.
func Save(path string, body io.Reader) (info kvstore.BodyInfo, size int64, err error) {
	verify := func(r io.Reader) (err error) {
		info, err = kvstore.VerifyBody(r)
		return err
	}
	size, err = datadir.WriteVerified(path, bodyReader{body}, verify)
	return info, size, err
}

// bodyReader is a reader as an io.WriterTo.
type bodyReader struct{ io.Reader }

func (b bodyReader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b.Reader})
}
