package node

import (
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
)

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
