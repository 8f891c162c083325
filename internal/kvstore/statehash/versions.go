package statehash

import (
	"bytes"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// VersionScan computes from the versions what the change log must say, and the size of
// the history.
type VersionScan struct {
	hasher Hasher
	// Compact is the compact revision, which is set before the first version.
	Compact uint64
	// Changes is the sum of the terms of the changes from the compact revision on. Like the
	// history, it is complete after EndKey.
	Changes         uint64
	HistoryBytes    int64 // of the versions that are not current
	HistoryVersions int64

	prefix []byte // of the current key
	// later is the last version, whose change the next one completes; its revision is 0
	// at the beginning of a key.
	later    uint64
	change   changelog.Change
	complete bool // no further version of the key may come
}

// Add takes the next version in the order of the engine: those of a key newest first.
func (s *VersionScan) Add(key, value []byte) error {
	if err := layout.CheckVersionKey(key); err != nil {
		return err
	}
	prefix, mod, err := layout.SplitVersionKey(key)
	if err != nil {
		return err
	}
	v, err := layout.DecodeVersion(mod, value)
	if err != nil {
		return err
	}
	newest := !bytes.Equal(prefix, s.prefix)
	if newest {
		s.EndKey()
		s.prefix = append(s.prefix[:0], prefix...)
		s.change.Key = layout.UnescapePrefix(s.change.Key[:0], prefix)
	} else {
		if s.complete {
			return fmt.Errorf("%w: a version that no read needs", layout.ErrMalformed)
		}
		if !v.Deleted {
			s.change.Previous, s.change.Stored = mod, int64(len(key)+len(value))
		}
		s.endVersion()
	}
	if v.Deleted && mod < s.Compact {
		return fmt.Errorf("%w: a deletion that no read needs", layout.ErrMalformed)
	}
	if v.Deleted || !newest {
		s.HistoryBytes += int64(len(key) + len(value))
		s.HistoryVersions++
	}
	s.later, s.change.Deleted, s.complete = mod, v.Deleted, mod <= s.Compact
	return nil
}

// endVersion adds the change that made the last version.
func (s *VersionScan) endVersion() {
	if s.later >= s.Compact && s.later != 0 {
		s.Changes += s.hasher.Change(s.later, &s.change)
	}
	s.change.Previous, s.change.Stored = 0, 0
}

// EndKey adds the change that made the oldest version of the key.
func (s *VersionScan) EndKey() {
	s.endVersion()
	s.later, s.complete = 0, false
}
