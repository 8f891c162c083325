package statehash

import (
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// TestTermsDiffer: moving a byte from one field to the next, from one table to another, or
// changing any field gives another term.
func TestTermsDiffer(t *testing.T) {
	var h Hasher
	pair := func(key, value string, mod uint64, v layout.Version) uint64 {
		v.Value = []byte(value)
		return h.Key([]byte(key), mod, &v)
	}
	v := layout.Version{Create: 2, Version: 3}
	seen := make(map[uint64]string)
	for name, term := range map[string]uint64{
		"pair":           pair("ab", "c", 5, v),
		"shorter key":    pair("a", "bc", 5, v),
		"later":          pair("ab", "c", 6, v),
		"created later":  pair("ab", "c", 5, layout.Version{Create: 3, Version: 3}),
		"version":        pair("ab", "c", 5, layout.Version{Create: 2, Version: 4}),
		"lease":          pair("ab", "c", 5, layout.Version{Create: 2, Version: 3, Lease: 1}),
		"attributes":     pair("ab", "c", 5, layout.Version{Create: 2, Version: 3, Attributes: &command.Attributes{Flags: 1}}),
		"record":         h.Record([]byte("ab"), []byte("c")),
		"shorter record": h.Record([]byte("a"), []byte("bc")),
		"row":            h.Row([]byte("lab"), []byte("c")),
		"shorter row":    h.Row([]byte("la"), []byte("bc")),
		"other table":    h.Row([]byte("kab"), []byte("c")),
		"change":         h.Change(5, &changelog.Change{Key: []byte("ab"), Previous: 2, Stored: 9}),
		"deletion":       h.Change(5, &changelog.Change{Key: []byte("ab"), Previous: 2, Stored: 9, Deleted: true}),
		"settings":       h.Settings([]byte("abc")),
		"times":          h.Times(1, 2),
		"other times":    h.Times(2, 1),
	} {
		if other, ok := seen[term]; ok {
			t.Errorf("%s and %s have the same term", name, other)
		}
		seen[term] = name
	}
}
