package transfer

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/kvd-io/kvd/client"
)

// Pair is a pair of a source.
type Pair struct {
	Key    string
	Value  []byte
	Leased bool // it ends with a lease of the cluster that it comes from
}

// Source is where an import comes from. It can be read more than once, and has the
// same pairs each time.
type Source struct {
	// What names it in messages.
	What string
	// Close releases what it holds.
	Close func()
	// pairs yields all pairs. After an error it ends.
	pairs func(ctx context.Context) iter.Seq2[Pair, error]
	// check reads what can be checked before anything is stored, and returns the
	// number of pairs.
	check func() (int64, error)
}

// Meter shows how far something has come.
type Meter interface {
	Add(n int64)
	Done()
}

// Import is an import into the cluster of a client.
type Import struct {
	Client  *client.Client
	Timeout time.Duration // of one request
	Prefix  string        // only these keys
	Leased  bool          // also pairs with leases, without them
	DryRun  bool          // store nothing
	// Meter returns a new meter for a part of the work.
	Meter func(what string, total int64) Meter
}

// Imported counts what an import did.
type Imported struct {
	Keys    uint64 `json:"keys"`    // of the source, without those left out
	Written uint64 `json:"written"` // those that differed
	Skipped uint64 `json:"skipped"` // bound to leases
	SHA256  string `json:"sha256,omitempty"`
}

// KeyError is why a single pair was not stored.
type KeyError struct {
	Key string
	Err error
}

// Error names the key.
func (e *KeyError) Error() string { return fmt.Sprintf("store %q: %v", e.Key, e.Err) }

// Unwrap returns the reason.
func (e *KeyError) Unwrap() error { return e.Err }

const (
	// maxChunkPairs and maxChunkBytes bound the pairs that are read and written at
	// once. They stay below the smallest limits that make sense for transactions.
	maxChunkPairs = 128
	maxChunkBytes = 512 << 10
)

// chunks yields the pairs of the source that are to be imported, in pieces.
func (m *Import) chunks(ctx context.Context, from *Source, skipped *uint64) iter.Seq2[[]Pair, error] {
	return func(yield func([]Pair, error) bool) {
		var chunk []Pair
		bytes := 0
		for p, err := range from.pairs(ctx) {
			switch {
			case err != nil:
				yield(nil, fmt.Errorf("read %s: %w", from.What, err))
				return
			case !strings.HasPrefix(p.Key, m.Prefix):
				continue
			case p.Leased && !m.Leased:
				*skipped++
				continue
			}
			size := len(p.Key) + len(p.Value)
			if len(chunk) == maxChunkPairs || len(chunk) > 0 && bytes+size > maxChunkBytes {
				if !yield(chunk, nil) {
					return
				}
				chunk, bytes = nil, 0
			}
			chunk = append(chunk, p)
			bytes += size
		}
		if len(chunk) > 0 {
			yield(chunk, nil)
		}
	}
}

// Store compares the source with the cluster, and stores what differs. What it
// returns counts what was done, also after an error.
func (m *Import) Store(ctx context.Context, from *Source) (done Imported, err error) {
	total, err := from.check()
	if err != nil {
		return done, fmt.Errorf("%s cannot be imported: %w; nothing was stored", from.What, err)
	}
	meter := m.Meter("importing", total)
	defer meter.Done()
	for chunk, err := range m.chunks(ctx, from, &done.Skipped) {
		if err != nil {
			return done, err
		}
		n, err := m.storeChunk(ctx, chunk)
		if err != nil {
			return done, err
		}
		done.Keys += uint64(len(chunk))
		done.Written += uint64(n)
		meter.Add(int64(len(chunk)))
	}
	return done, nil
}

// storeChunk stores what differs in a chunk, and returns how many pairs did.
func (m *Import) storeChunk(ctx context.Context, chunk []Pair) (int, error) {
	now, err := m.values(ctx, chunk)
	if err != nil {
		return 0, err
	}
	var differ []Pair
	for i, p := range chunk {
		if now[i] == nil || string(now[i].Value) != string(p.Value) {
			differ = append(differ, p)
		}
	}
	if len(differ) == 0 || m.DryRun {
		return len(differ), nil
	}
	return len(differ), m.put(ctx, differ)
}

// values reads the keys of a chunk; nil where the cluster does not have one.
func (m *Import) values(ctx context.Context, chunk []Pair) ([]*client.KV, error) {
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	txn := m.Client.Txn()
	for _, p := range chunk {
		txn.Then(client.OpGet(p.Key))
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

// put stores pairs in one revision.
func (m *Import) put(ctx context.Context, pairs []Pair) error {
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	if len(pairs) == 1 { // alone, it may be larger than a transaction
		if _, err := m.Client.Put(ctx, pairs[0].Key, pairs[0].Value); err != nil {
			return &KeyError{pairs[0].Key, err}
		}
		return nil
	}
	txn := m.Client.Txn()
	for _, p := range pairs {
		txn.Then(client.OpPut(p.Key, p.Value))
	}
	_, err := txn.Commit(ctx)
	return err
}

// Verify reads everything once more, from the source and from the cluster, and notes
// the hash.
func (m *Import) Verify(ctx context.Context, from *Source, done *Imported) error {
	meter := m.Meter("verifying", int64(done.Keys))
	defer meter.Done()
	want, got := newDigest(), newDigest()
	differs, skipped := "", uint64(0)
	for chunk, err := range m.chunks(ctx, from, &skipped) {
		if err != nil {
			return err
		}
		now, err := m.values(ctx, chunk)
		if err != nil {
			return err
		}
		for i, p := range chunk {
			want.add(p.Key, p.Value)
			if now[i] != nil {
				got.add(p.Key, now[i].Value)
			}
			if differs == "" && want.String() != got.String() {
				differs = p.Key
			}
		}
		meter.Add(int64(len(chunk)))
	}
	if done.SHA256 = want.String(); done.SHA256 != got.String() {
		return fmt.Errorf("the cluster differs from %s: %d of %d keys, sha256 %s instead of %s; "+
			"the first one that differs is %q. Somebody else may have changed it; run the command again",
			from.What, got.pairs, want.pairs, got, want, differs)
	}
	return nil
}
