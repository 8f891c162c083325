package datadir

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.uber.org/zap"
)

// inspection holds the findings about a directory with a log. A start and the
// doctor make the same inspection, so they reach the same verdict.
type inspection struct {
	log       *guardReport
	identity  Identity // zero if the directory has none
	watermark *watermark
	snapshot  *snapshotRecord // the newest usable one, or nil
	refused   *RefusedError
}

// inspect reads a directory that holds a log, and changes nothing. The error is
// about reading the directory, not about its content.
func inspect(dir string) (*inspection, error) {
	x := new(inspection)
	if err := x.read(dir); err != nil && !errors.As(err, &x.refused) {
		return nil, err
	}
	return x, nil
}

func (x *inspection) read(dir string) (err error) {
	if x.log, err = guardLog(walDir(dir)); err != nil {
		return err
	}
	if x.log.verdict == logCorrupt {
		return x.log.refusal()
	}
	if x.identity, err = readIdentity(dir); err != nil {
		return err
	}
	if r := x.checkOwner(dir); r != nil {
		return r
	}
	if x.watermark, err = readWatermark(dir); err != nil {
		return err
	}
	if r := x.watermark.check(dir, x.log); r != nil {
		return r
	}
	// Somebody copied files from one member's directory into another's.
	if w := x.watermark; w != nil && w.Member != 0 && x.identity.MemberID != 0 && w.Member != x.identity.MemberID {
		return refuse(watermarkPath(dir), "the watermark belongs to member %d, but the directory belongs to member %d", w.Member, x.identity.MemberID)
	}
	return x.findSnapshot(dir)
}

// checkOwner refuses the log of another member, which somebody copied into the directory.
func (x *inspection) checkOwner(dir string) *RefusedError {
	var log metadata
	if json.Unmarshal(x.log.metadata, &log) != nil || log.Version != metadataVersion || x.identity.ClusterID == 0 {
		return nil // OpenLog judges the format, and whether there has to be an identity
	}
	if id := x.identity; log.MemberID != id.MemberID || log.ClusterID != id.ClusterID {
		return refuse(walDir(dir), "the log belongs to member %d of cluster %016x, but the directory belongs to member %d of cluster %016x",
			log.MemberID, log.ClusterID, id.MemberID, id.ClusterID)
	}
	return nil
}

// findSnapshot chooses the newest snapshot that the log has and whose file can
// be read, and checks that the log continues from there. An unreadable file is
// passed over, because the older snapshot and the log after it are kept for
// that case (D4).
func (x *inspection) findSnapshot(dir string) error {
	valid := x.log.validSnapshots()
	files, err := snapshotFiles(dir)
	if err != nil {
		return err
	}
	for _, f := range slices.Backward(files) {
		if !slices.Contains(valid, f.at) {
			continue
		}
		if _, err := snap.Read(zap.NewNop(), filepath.Join(snapDir(dir), f.name)); err == nil {
			x.snapshot = &f.at
			break
		}
	}
	shape := &x.log.shape
	switch {
	case x.snapshot == nil && (!shape.known || shape.base > 0):
		return refuse(snapDir(dir), "the log begins after entry %d, and none of its snapshots is readable", shape.base)
	case x.snapshot != nil && x.snapshot.index < shape.base:
		return refuse(snapDir(dir), "the log begins after entry %d, but the newest readable snapshot is at entry %d", shape.base, x.snapshot.index)
	}
	return nil
}
