package kvstore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
)

// View is the whole state at one position. It does not change, and must be closed.
type View struct {
	snapshot engine.Snapshot
	meta     layout.Meta
}

// View pins the current state in constant time.
func (s *Store) View() (*View, error) { return newView(s.eng.Snapshot()) }

// Durable returns the state that would survive a crash if the log were lost, or nil if
// the engine keeps nothing on disk. Its position is the durable index, up to which
// the log may be released: the position is written with the data (S1), so it needs no
// record of its own.
func (s *Store) Durable() (*View, error) {
	snapshot := s.eng.Durable()
	if snapshot == nil {
		return nil, nil
	}
	return newView(snapshot)
}

func newView(snapshot engine.Snapshot) (*View, error) {
	m, err := readMeta(snapshot)
	if err != nil {
		return nil, errors.Join(err, snapshot.Close())
	}
	return &View{snapshot: snapshot, meta: m}, nil
}

// Position returns the log position of the last entry in the view.
func (v *View) Position() (index, term uint64) {
	return v.meta.Position.Index, v.meta.Position.Term
}

// Revision returns the newest revision in the view.
func (v *View) Revision() uint64 { return v.meta.Revision }

// Records returns the records of the replication layer in the order of their keys.
func (v *View) Records() ([]Record, error) {
	records, err := readRecords(v.snapshot)
	if err != nil {
		return nil, err
	}
	out := make([]Record, 0, len(records))
	for key, value := range records {
		out = append(out, Record{Key: []byte(key), Value: value})
	}
	slices.SortFunc(out, func(a, b Record) int { return slices.Compare(a.Key, b.Key) })
	return out, nil
}

// ScanHash recomputes the state hash from all records. It must equal Hash (S3).
func (v *View) ScanHash() (uint64, error) {
	scan := statehash.Scan{RowBytes: rowBytes}
	hasSettings, err := v.each(scan.Add)
	if err != nil {
		return 0, err
	}
	if !hasSettings {
		scan.Rest += emptyHash()
	}
	return scan.Pairs + scan.Rest, nil
}

// each calls fn with every record of the engine in order. It reports whether settings
// were among them: a store in which none were set has none, and its hash is that of
// the defaults.
func (v *View) each(fn func(key, value []byte) error) (hasSettings bool, err error) {
	it, err := v.snapshot.Iter(nil, nil)
	if err != nil {
		return false, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		hasSettings = hasSettings || it.Key()[0] == layout.TableSetting
		if err := fn(it.Key(), it.Value()); err != nil {
			return hasSettings, err
		}
	}
	return hasSettings, it.Err()
}

// Hash returns the state hash at the position of the view, as it was kept.
func (v *View) Hash() uint64 { return v.meta.Hash() }

// Close releases the view.
func (v *View) Close() error {
	if err := v.snapshot.Close(); err != nil {
		return fmt.Errorf("release view: %w", err)
	}
	return nil
}
