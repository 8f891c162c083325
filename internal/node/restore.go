package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/padded"
)

// Restoring says which backup becomes what.
type Restoring struct {
	File    string
	DataDir string
	ID      uint64
	// Initial and Token are those that the node will be started with. Without Initial
	// the directory accepts any.
	Initial []Peer
	Token   string
	// Progress is told how many bytes more of the file were read, verified, or copied:
	// RestorePasses times its size in all. nil means that nobody wants to know.
	Progress func(bytes int)
}

// RestorePasses is how often Restore goes over the backup: to verify it, to copy it, and
// to verify the copy.
const RestorePasses = 3

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
	body, err := BackupIn(f)
	if err != nil {
		return info, fmt.Errorf("restore %s: %w", r.File, err)
	}
	if info, err = kvstore.VerifyBody(counted{body, r.Progress}); err != nil { // before anything is written
		return info, fmt.Errorf("restore %s: %w", r.File, err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	p := datadir.Planting{MemberID: r.ID, Body: bodyReader{counted{body, r.Progress}}, Verify: func(b io.Reader) error {
		_, err := kvstore.VerifyBody(counted{b, r.Progress})
		return err
	}}
	if len(r.Initial) > 0 {
		p.Rendezvous = rendezvousID(r.Token, r.Initial)
	}
	if err := datadir.Plant(r.DataDir, p); err != nil {
		return info, fmt.Errorf("restore %s into %s: %w", r.File, r.DataDir, err)
	}
	return info, nil
}

// BackupIn returns the body in the file of a backup, which etcdctl may have written.
func BackupIn(f *os.File) (io.ReadSeeker, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() { // a pipe has no size
		return f, nil
	}
	return padded.Body(f, st.Size())
}

// SaveBackup writes a backup to a file, which gets its name only if it is intact. It
// returns the size of the file.
func SaveBackup(path string, body io.Reader) (info kvstore.BodyInfo, size int64, err error) {
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

// plant fills the store with the state of the backup that the directory was restored
// from. Clients of the old cluster may have seen what was counted after the backup, so
// the counters go on above that.
func plant(dir *datadir.Dir, store *kvstore.Store, lg *zap.Logger) error {
	if err := dir.ReadSeed(store.Restore); err != nil {
		return err
	}
	if err := store.RaiseCounters(); err != nil {
		return err
	}
	lg.Info("state restored from a backup", zap.Uint64("revision", store.Revision()), zap.Uint64("keys", store.Stats().Keys))
	return nil
}

// warnSeed says why a fresh member is not one to found a cluster with.
func (j *joiner) warnSeed(a initialAnswer) {
	what := "an initial member was restored from a different backup; restore the same file on a majority of them"
	switch {
	case a.info.Seed == "":
		what = "an initial member was not restored from the backup; a majority must be restored from the same file, and the others receive its content later"
	case j.seed == "":
		what = "an initial member was restored from a backup, and this one was not; a majority must be restored from the same file, and the others receive its content later"
	}
	if j.waiting.Due(time.Now(), what+a.url) {
		j.lg.Warn(what, zap.String("url", a.url), zap.Uint64("member", a.info.MemberID))
	}
}

// foreign reports whether a cluster is one that this directory, which was restored for
// a new cluster, must not join.
func (j *joiner) foreign(a initialAnswer) bool {
	return j.seed != "" && j.self.Cluster == 0 && a.info.ClusterID != 0 && (a.info.Charter == nil || a.info.Charter.Seed != j.seed)
}

// refuseSeed refuses to drop the state of a backup in favor of a cluster that exists
// already and did not begin with it. It may be the old cluster, or one that the other
// members founded without the backup.
func (j *joiner) refuseSeed(answers []initialAnswer) error {
	var other []string
	for _, a := range answers {
		switch {
		case a.info.ClusterID == 0 || a.info.Rendezvous != j.self.Rendezvous:
		case !j.foreign(a):
			return nil
		default:
			other = append(other, fmt.Sprintf("cluster %016x at %s", a.info.ClusterID, a.url))
		}
	}
	if len(other) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s was restored from a backup, but a cluster that did not begin with this backup exists already: %s; "+
		"stop its members and restore them too, or restore under another --cluster-token, or join it with an empty directory",
		ErrRefused, absolute(j.cfg.DataDir), strings.Join(other, ", "))
}
