package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/backup"
	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/roster"
	"github.com/kvd-io/kvd/internal/settings"
)

// snapshotCommand makes backups and works on their files. Only "save" needs a
// running node.
func snapshotCommand(e environment) *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "Save, check, and restore backups", RunE: chooseSubcommand}
	cmd.AddCommand(snapshotSaveCommand(e), snapshotVerifyCommand(e), snapshotInspectCommand(e), snapshotRestoreCommand(e))
	return cmd
}

// outputFlag adds the flag that all commands about backups have.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "print as `FORMAT`: text or json")
}

func checkOutput(output string) error {
	if output != "text" && output != "json" {
		return usageError{fmt.Errorf("--output is %q, but must be text or json", output)}
	}
	return nil
}

func snapshotVerifyCommand(e environment) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a backup from its first byte to its last",
		Long: `Verify the checksums, counts, and state hash of a backup. Exits 0 if it is intact, 3 if it is
not, and 1 if it cannot be read.`,
		Args: oneArgument("backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, size, err := inspectSnapshot(e, args[0])
			if err != nil {
				return err
			}
			return printIntact(cmd.OutOrStdout(), output, args[0], size, &c.BodyInfo)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// contents is what a backup was found to have.
type contents struct {
	File            string `json:"file"`
	SizeBytes       uint64 `json:"size_bytes"`
	Index           uint64 `json:"index"`
	Term            uint64 `json:"term"`
	Revision        uint64 `json:"revision"`
	CompactRevision uint64 `json:"compact_revision"`
	Keys            uint64 `json:"keys"`
	Records         uint64 `json:"records"`
	RecordBytes     uint64 `json:"record_bytes"` // before compression
	StateHash       string `json:"state_hash"`
}

func contentsOf(name string, size uint64, info *kvstore.BodyInfo) contents {
	return contents{
		File: name, SizeBytes: size, Index: info.Position.Index, Term: info.Position.Term, Revision: info.Revision, CompactRevision: info.CompactRevision,
		Keys: info.Keys, Records: info.Records, RecordBytes: info.Bytes, StateHash: fmt.Sprintf("%016x", info.StateHash),
	}
}

// printIntact describes a backup that was verified.
func printIntact(w io.Writer, output, name string, size uint64, info *kvstore.BodyInfo) error {
	if output == "json" {
		return json.NewEncoder(w).Encode(contentsOf(name, size, info))
	}
	_, err := fmt.Fprintf(w,
		"%s is intact\nsize        %s\nrevision    %d (history from %d)\nkeys        %s\nrecords     %s\nlog index   %d, term %d\nstate hash  %016x\n",
		name, humanize.IBytes(size), info.Revision, info.CompactRevision, humanize.Comma(int64(info.Keys)), humanize.Comma(int64(info.Records)),
		info.Position.Index, info.Position.Term, info.StateHash)
	return err
}

// inspectSnapshot reads a backup to its end.
func inspectSnapshot(e environment, name string) (c kvstore.BodyContents, size uint64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return c, 0, fmt.Errorf("verify backup: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if st, err := f.Stat(); err == nil { // a pipe has no size
		size = uint64(max(0, st.Size()))
	}
	body, err := backup.BodyIn(f)
	if err != nil {
		return c, 0, fmt.Errorf("verify backup: %w", err)
	}
	bar := cli.NewBar(e.stderr, barTotal(size), "verifying", "bytes")
	c, err = kvstore.InspectBody(bar.Reader(body))
	bar.Done()
	if err != nil {
		err = badBackup(fmt.Errorf("verify backup %s: %w", name, err))
	}
	return c, size, err
}

// barTotal is the total of a bar over a file; -1 if its size is not known.
func barTotal(size uint64) int64 {
	if size == 0 {
		return -1
	}
	return int64(size)
}

// badBackup makes an error a refusal if it is about what is in the backup.
func badBackup(err error) error {
	var unknown *kvstore.UnknownVersionError
	if errors.Is(err, kvstore.ErrBody) || errors.As(err, &unknown) {
		return refusal{err}
	}
	return err
}

// backupDocument is what "kvd snapshot inspect" shows.
type backupDocument struct {
	contents
	ClusterID string           `json:"cluster_id"`
	Members   []roster.Member  `json:"members"`
	Settings  kvstore.Settings `json:"settings"`
}

func snapshotInspectCommand(e environment) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Verify a backup and show what is in it",
		Long: `Verify a backup and show the position, revisions, settings, and members in it. Keys and values
are not shown. Exits like "kvd snapshot verify".`,
		Args: oneArgument("backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, size, err := inspectSnapshot(e, args[0])
			if err != nil {
				return err
			}
			// The checksums match, so it was written like this, most likely by a
			// newer version.
			members, err := roster.Load(c.Replication)
			if err != nil {
				return refusal{fmt.Errorf("inspect backup %s: %w", args[0], err)}
			}
			b := describeBackup(args[0], size, &c, members.Membership())
			if output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(b)
			}
			return b.print(cmd.OutOrStdout())
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func describeBackup(name string, size uint64, c *kvstore.BodyContents, m *roster.Membership) *backupDocument {
	return &backupDocument{contents: contentsOf(name, size, &c.BodyInfo), ClusterID: fmt.Sprintf("%016x", m.ClusterID), Members: m.Members, Settings: c.Settings}
}

func (b *backupDocument) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+"\t"+format+"\n", args...) }
	line("file", "%s", b.File)
	line("size", "%s (%s before compression)", humanize.IBytes(b.SizeBytes), humanize.IBytes(b.RecordBytes))
	line("log index", "%d, term %d", b.Index, b.Term)
	line("revision", "%d (history from %d)", b.Revision, b.CompactRevision)
	line("keys", "%s", humanize.Comma(int64(b.Keys)))
	line("records", "%s", humanize.Comma(int64(b.Records)))
	line("state hash", "%s", b.StateHash)
	line("cluster", "%s", b.ClusterID)
	for _, m := range b.Members {
		line("member", "%d %s %s", m.ID, m.Name, strings.Join(m.PeerURLs, ","))
	}
	set, err := json.Marshal(b.Settings)
	if err != nil {
		return err
	}
	line("settings", "%s", set)
	return w.Flush()
}

// snapshotRestoreCommand makes the data directory of a member of a new cluster. It
// takes the flags of a node: what a node is started with says which member of which
// cluster the directory is for.
func snapshotRestoreCommand(e environment) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Turn a backup into the data directory of a new cluster",
		Long: `Turn a backup into a data directory, which must not exist or be empty. A node that is started
with it begins a new cluster with the content of the backup. For several members, restore the same
file for each of them with its own --id and --data-dir and the same --cluster, on the machine where
it will run, and then start them with the same settings.

The new cluster has a different id, and its members refuse those of the old one. Keys
keep their revisions. The next revision is more than 1,000,000,000 higher, so that it differs from
all that clients have seen of the old cluster, and the history before it is not readable: watchers
are told to read everything again. Leases get their full time to live again.

Exits 0 on success, 1 on failure, 2 if the settings are wrong, and 3 if the backup is damaged or
written by a newer version, or if the directory is not empty. After a failure or a crash, run it
again.`,
		Example: `  kvd snapshot restore backup.kvd --data-dir ./new
  kvd snapshot restore backup.kvd --id 2 --data-dir ./new \
      --cluster http://10.0.0.1:12379,http://10.0.0.2:12379,http://10.0.0.3:12379`,
		Args: oneArgument("backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			s, err := settings.Load(cmd.Flags(), e.environ)
			if err != nil {
				return usageError{err}
			}
			return restoreSnapshot(e, cmd.OutOrStdout(), output, s, args[0])
		},
	}
	settings.AddFlags(cmd.Flags())
	outputFlag(cmd, &output)
	return cmd
}

func restoreSnapshot(e environment, out io.Writer, output string, s *settings.Settings, file string) error {
	if s.Join || len(s.JoinURLs) > 0 {
		return usageError{errors.New("a restored directory begins a new cluster and cannot --join one; join with an empty directory, and the cluster sends its content")}
	}
	cfg := nodeConfig(s, nil, buildVersion())
	r := backup.Restoring{File: file, DataDir: cfg.DataDir, ID: cfg.ID}
	if !cfg.Alone {
		r.Rendezvous = node.RendezvousID(cfg.Token, cfg.Initial)
	}
	total := int64(-1)
	if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() {
		total = backup.Passes * st.Size()
	}
	bar := cli.NewBar(e.stderr, total, "restoring", "bytes")
	r.Progress = func(bytes int) { bar.Add(int64(bytes)) }
	info, err := backup.Restore(r)
	bar.Done()
	if err != nil {
		return badBackup(err)
	}
	if output == "json" {
		return json.NewEncoder(out).Encode(restored{cfg.DataDir, cfg.ID, info.Keys, info.Revision})
	}
	_, err = fmt.Fprintf(out, "restored %s keys of revision %d into %s, for member %d of a new cluster\n%s\n",
		humanize.Comma(int64(info.Keys)), info.Revision, cfg.DataDir, cfg.ID, afterRestore(&cfg))
	return err
}

// restored is what "kvd snapshot restore" did.
type restored struct {
	DataDir  string `json:"data_dir"`
	Member   uint64 `json:"member"`
	Keys     uint64 `json:"keys"`
	Revision uint64 `json:"revision"`
}

// afterRestore says what to do next.
func afterRestore(cfg *node.Config) string {
	if cfg.Alone {
		return "start it with: kvd --data-dir " + cfg.DataDir
	}
	n := len(cfg.Initial)
	if n == 1 {
		return "start it with the same settings"
	}
	return fmt.Sprintf("restore the same file for the other members too (at least %d of the %d), and start all with the same settings", n/2+1, n)
}
