package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/etcdfile"
)

func exportGroup(sh *shell) *cobra.Command {
	cmd := &cobra.Command{Use: "export", Short: "Write all keys to a file of another system"}
	cmd.AddCommand(exportEtcdCommand(sh))
	return cmd
}

func exportEtcdCommand(sh *shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "etcd FILE",
		Short: "Write all keys and leases as a snapshot file of etcd",
		Long: `Write all keys and leases, as of one revision, to a FILE that is a snapshot of etcd: etcdutl
snapshot status shows what is in it, and etcdutl snapshot restore makes a data directory of it. Keys
keep their values, revisions, versions, and leases; each lease has its full time to live again.
History, settings, locks, users, and roles stay behind.

The FILE gets its name once it is complete; until then it is called FILE.partial.`,
		Example: `  kvd export etcd kvd.db
  etcdutl snapshot restore kvd.db --data-dir default.etcd`,
		Args: between(1, 1),
	}
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		if info, err := os.Stat(args[0]); err == nil && info.IsDir() {
			return usagef("%s is a directory; name a file to write to", args[0])
		}
		w, err := etcdfile.Create(args[0])
		if err != nil {
			return err
		}
		revision, err := s.exportEtcd(ctx, w)
		if err != nil {
			return errors.Join(err, w.Abort())
		}
		if err := w.Finish(revision); err != nil {
			return err
		}
		return s.printEtcdExport(w.Pairs(), revision, args[0])
	})
	return cmd
}

// exportEtcd writes leases and pairs, and returns the revision of the pairs.
func (s *session) exportEtcd(ctx context.Context, w *etcdfile.Writer) (revision uint64, err error) {
	limited, cancel := s.limited(ctx)
	total, err := s.Count(limited, client.Prefix(""), client.ReportRevision(&revision))
	cancel()
	if err != nil {
		return 0, err
	}
	for l, err := range s.Leases(ctx) {
		if err != nil {
			return 0, err
		}
		if err := w.Lease(l.ID, inSeconds(l.TTL)); err != nil {
			return 0, err
		}
	}
	bar := NewBar(s.env.Stderr, int64(total), "exporting", "keys")
	defer bar.Done()
	dog := s.watchdog(ctx)
	defer dog.stop()
	for kv, err := range s.List(dog.ctx, client.Prefix(""), client.AtRevision(revision)) {
		dog.pause()
		if err == nil {
			err = s.exportPair(ctx, w, kv)
		}
		if err != nil {
			return 0, dog.explain(err)
		}
		bar.Add(1)
		dog.resume()
	}
	return revision, nil
}

// exportPair writes a pair. If its lease is not in the list, because it was granted later or
// has ended since, the exported lease expires soon after the restore.
func (s *session) exportPair(ctx context.Context, w *etcdfile.Writer, kv *client.KV) error {
	if kv.Lease != 0 && !w.HasLease(kv.Lease) {
		limited, cancel := s.limited(ctx)
		l, err := s.LeaseInfo(limited, kv.Lease)
		cancel()
		ttl := int64(0)
		switch {
		case err == nil:
			ttl = inSeconds(l.TTL)
		case !errors.Is(err, client.ErrLeaseNotFound):
			return err
		}
		if err := w.Lease(kv.Lease, ttl); err != nil {
			return err
		}
	}
	return w.Pair(&etcdfile.Pair{
		Key: []byte(kv.Key), Value: kv.Value, CreateRevision: int64(kv.CreateRevision), ModRevision: int64(kv.ModRevision),
		Version: int64(kv.Version), Lease: kv.Lease,
	})
}

// inSeconds rounds up: a lease must not end before its time.
func inSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

func (s *session) printEtcdExport(pairs, revision uint64, name string) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(map[string]any{"count": pairs, "revision": revision, "file": name})
	case formatValue:
		return s.println(fmt.Sprint(pairs))
	}
	return s.println(fmt.Sprintf("exported %d key%s of revision %d to %s, a snapshot of etcd", pairs, plural(int(pairs)), revision, name))
}
