package cli

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

// A pair of a source.
type pair struct {
	key    string
	value  []byte
	leased bool // it ends with a lease of the cluster that it comes from
}

// source is where an import comes from. It can be read more than once, and has the
// same pairs each time.
type source struct {
	// what names it in messages.
	what string
	// pairs yields all pairs. After an error it ends.
	pairs func(ctx context.Context) iter.Seq2[pair, error]
	// check, if not nil, reads the whole source and finds mistakes in it before
	// anything is written. It returns the number of pairs.
	check func() (int64, error)
	close func()
}

// importFlags are the flags of kvd kv import.
type importFlags struct {
	from          string
	prefix        string
	leased        bool
	dryRun        bool
	ca, cert, key string // for etcd
}

func importCommand(sh *shell) *cobra.Command {
	var m importFlags
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Read keys from an export, from etcd, or from Consul",
		Long: `Store the keys of an export of kvd, of an etcd that runs, or of a file that consul kv export has
written. What a FILE has is checked before anything is stored.

Only what differs is stored. So an import that was interrupted goes on when it is run again, and one
that is repeated later brings the cluster up to date. Keys that the source does not have stay.

At the end everything is compared: the number of keys and a hash over all of them must be the same
on both sides. Exits with 1 if they are not, and names a key that differs.

Keys that are bound to leases are left out, because the leases stay behind; with --leased they are
stored as permanent keys.`,
		Example: `  kvd kv import all.ndjson
  gunzip -c config.ndjson.gz | kvd kv import -
  kvd kv import --from etcd:http://10.0.0.9:2379 --prefix /config/
  consul kv export > consul.json && kvd kv import --from consul:consul.json`,
		Args: between(0, 1),
	}
	f := cmd.Flags()
	f.StringVar(&m.from, "from", "", "read from this `SOURCE` instead: etcd:URL or consul:FILE")
	f.StringVar(&m.prefix, "prefix", "", "only keys that begin with this `PREFIX`")
	f.BoolVar(&m.leased, "leased", false, "also keys that are bound to leases, as permanent keys")
	f.BoolVar(&m.dryRun, "dry-run", false, "only say what would be stored")
	f.StringVar(&m.ca, "from-cacert", "", "for etcd: trust the authority in this PEM `FILE`")
	f.StringVar(&m.cert, "from-cert", "", "for etcd: present the certificate in this PEM `FILE`")
	f.StringVar(&m.key, "from-key", "", "for etcd: use the key in this PEM `FILE` for --from-cert")
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		from, err := m.source(ctx, s, args)
		if err != nil {
			return err
		}
		if from.close != nil {
			defer from.close()
		}
		return m.run(ctx, s, from)
	})
	return cmd
}

// source returns what the arguments name.
func (m *importFlags) source(ctx context.Context, s *session, args []string) (*source, error) {
	kind, where, _ := strings.Cut(m.from, ":")
	switch {
	case m.from == "" && len(args) == 0:
		return nil, usagef("name the FILE to import, - for standard input, or another source with --from")
	case m.from == "":
		return exportSource(s, args[0])
	case len(args) > 0:
		return nil, usagef("%q and --from both name a source; give only one of them", args[0])
	case kind == "etcd":
		return m.etcdSource(ctx, s, where)
	case kind == "consul":
		return consulSource(s, where)
	}
	return nil, usagef("--from is %q, but must be etcd:URL or consul:FILE", m.from)
}

const (
	// maxChunkPairs and maxChunkBytes bound the pairs that are read and written at
	// once. They stay below the smallest limits that make sense for transactions.
	maxChunkPairs = 128
	maxChunkBytes = 512 << 10
)

// chunks yields the pairs of the source that are to be imported, in pieces.
func (m *importFlags) chunks(ctx context.Context, from *source, skipped *uint64) iter.Seq2[[]pair, error] {
	return func(yield func([]pair, error) bool) {
		var chunk []pair
		bytes := 0
		for p, err := range from.pairs(ctx) {
			switch {
			case err != nil:
				yield(nil, fmt.Errorf("read %s: %w", from.what, err))
				return
			case !strings.HasPrefix(p.key, m.prefix):
				continue
			case p.leased && !m.leased:
				*skipped++
				continue
			}
			if size := len(p.key) + len(p.value); len(chunk) == maxChunkPairs || len(chunk) > 0 && bytes+size > maxChunkBytes {
				if !yield(chunk, nil) {
					return
				}
				chunk, bytes = nil, 0
			}
			chunk = append(chunk, p)
			bytes += len(p.key) + len(p.value)
		}
		if len(chunk) > 0 {
			yield(chunk, nil)
		}
	}
}

// imported counts what an import did.
type imported struct {
	Keys    uint64 `json:"keys"`    // of the source, without those left out
	Written uint64 `json:"written"` // those that differed
	Skipped uint64 `json:"skipped"` // bound to leases
	SHA256  string `json:"sha256,omitempty"`
}

// run stores what differs, and compares everything at the end.
func (m *importFlags) run(ctx context.Context, s *session, from *source) error {
	total := int64(-1)
	if from.check != nil {
		var err error
		if total, err = from.check(); err != nil {
			return failf(exitFailed, "%s cannot be imported: %w; nothing was stored", from.what, err)
		}
	}
	var done imported
	if err := m.store(ctx, s, from, total, &done); err != nil {
		said := explain(err)
		return &failure{ExitCode(said), fmt.Sprintf("%v; keys compared so far: %d, and stored: %d; run the command again to go on", said, done.Keys, done.Written), err}
	}
	if !m.dryRun {
		if err := m.verify(ctx, s, from, &done); err != nil {
			return err
		}
	}
	return m.report(s, &done)
}

// store compares the source with the cluster, and stores what differs.
func (m *importFlags) store(ctx context.Context, s *session, from *source, total int64, done *imported) error {
	bar := NewBar(s.env.Stderr, total, "importing", "keys")
	defer bar.Done()
	for chunk, err := range m.chunks(ctx, from, &done.Skipped) {
		if err != nil {
			return err
		}
		now, err := s.values(ctx, chunk)
		if err != nil {
			return err
		}
		var differ []pair
		for i, p := range chunk {
			if now[i] == nil || string(now[i].Value) != string(p.value) {
				differ = append(differ, p)
			}
		}
		if !m.dryRun {
			if err := s.putAll(ctx, differ); err != nil {
				return err
			}
		}
		done.Keys += uint64(len(chunk))
		done.Written += uint64(len(differ))
		bar.Add(int64(len(chunk)))
	}
	return nil
}

// values reads the keys of a chunk; nil where the cluster does not have one.
func (s *session) values(ctx context.Context, chunk []pair) ([]*client.KV, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	txn := s.Txn()
	for _, p := range chunk {
		txn.Then(client.OpGet(p.key))
	}
	result, err := txn.Commit(ctx)
	if err != nil {
		return nil, err
	}
	if len(result.Results) != len(chunk) {
		return nil, fmt.Errorf("%d results for %d reads", len(result.Results), len(chunk))
	}
	out := make([]*client.KV, len(chunk))
	for i := range out {
		out[i] = result.Results[i].KV
	}
	return out, nil
}

// putAll stores pairs in one revision.
func (s *session) putAll(ctx context.Context, pairs []pair) error {
	if len(pairs) == 0 {
		return nil
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	if len(pairs) == 1 { // alone, it may be larger than a transaction
		_, err := s.Put(ctx, pairs[0].key, pairs[0].value)
		if err != nil {
			return fmt.Errorf("store %s: %w", printable(pairs[0].key), explain(err))
		}
		return nil
	}
	txn := s.Txn()
	for _, p := range pairs {
		txn.Then(client.OpPut(p.key, p.value))
	}
	_, err := txn.Commit(ctx)
	return err
}

// verify reads everything once more, from the source and from the cluster.
func (m *importFlags) verify(ctx context.Context, s *session, from *source, done *imported) error {
	bar := NewBar(s.env.Stderr, int64(done.Keys), "verifying", "keys")
	defer bar.Done()
	want, got := newDigest(), newDigest()
	differs, skipped := "", uint64(0)
	for chunk, err := range m.chunks(ctx, from, &skipped) {
		if err != nil {
			return err
		}
		now, err := s.values(ctx, chunk)
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		for i, p := range chunk {
			want.add(p.key, p.value)
			if now[i] != nil {
				got.add(p.key, now[i].Value)
			}
			if differs == "" && want.String() != got.String() {
				differs = p.key
			}
		}
		bar.Add(int64(len(chunk)))
	}
	if done.SHA256 = want.String(); done.SHA256 != got.String() {
		return failf(exitFailed, "the cluster differs from %s: %d of %d keys, sha256 %s instead of %s; the first one is %s. Somebody else may have changed it; run the command again",
			from.what, got.pairs, want.pairs, got, want, printable(differs))
	}
	return nil
}

func (m *importFlags) report(s *session, done *imported) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(done)
	case formatValue:
		return s.println(fmt.Sprint(done.Keys))
	}
	if done.Skipped > 0 {
		s.note("left out %d key%s bound to leases; --leased stores them as permanent keys", done.Skipped, plural(int(done.Skipped)))
	}
	if m.dryRun {
		return s.println(fmt.Sprintf("would store %d of %d keys", done.Written, done.Keys))
	}
	return s.println(fmt.Sprintf("imported %d key%s: %d stored, %d were there already; verified, sha256 %s",
		done.Keys, plural(int(done.Keys)), done.Written, done.Keys-done.Written, done.SHA256))
}
