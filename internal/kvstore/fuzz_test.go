package kvstore

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// fuzzReplica applies a command between others, and returns its results and the state
// hash.
func fuzzReplica(t *testing.T, command, record []byte, o Options, together bool) (string, uint64, error) {
	s := openStore(t, engine.NewMemory(), o)
	defer s.Close()
	entries := []Entry{
		entryOf(1, put("a", "5"), put("\x00", "text"), remove("a"), put("a", "6")),
		{Index: 2, Term: 7, Commands: [][]byte{command, command}, Records: []Record{{Key: record, Value: record}}, WantResults: true},
		entryOf(3, appendTo("a", "1"), Command{Op: OpDeleteRange, Key: []byte("a"), End: []byte("b")}),
	}
	var err error
	if together {
		err = s.Apply(entries)
	} else {
		for i := 0; i < len(entries) && err == nil; i++ {
			err = s.Apply(entries[i : i+1])
			maintainUnlessFailed(t, s)
		}
	}
	if err != nil {
		return "", 0, err
	}
	checkCounters(t, s)
	_, hash := s.StateHash()
	results := resultsOf(&entries[1])
	return resultText(&results[0]) + resultText(&results[1]), hash, nil
}

func maintainUnlessFailed(t *testing.T, s *Store) {
	if s.exec.failed == nil {
		maintainAll(t, s)
	}
}

// FuzzApply: two replicas that apply arbitrary bytes in calls of different sizes agree.
func FuzzApply(f *testing.F) {
	rng := testRand(f)
	for range 50 {
		c := randomCommand(rng, newModel())
		f.Add(EncodeCommand(nil, &c), []byte("record"))
	}
	for op := range byte(20) {
		f.Add([]byte{command.Version, op, 0, 0, 0, 0, 0}, []byte{})
	}
	f.Fuzz(func(t *testing.T, command, record []byte) {
		result1, hash1, err1 := fuzzReplica(t, command, record, Options{}, true)
		result2, hash2, err2 := fuzzReplica(t, command, record, Options{CacheEntries: 1}, false)
		if (err1 == nil) != (err2 == nil) || err1 != nil && err1.Error() != err2.Error() {
			t.Fatalf("%x: %v and %v", command, err1, err2)
		}
		if result1 != result2 || hash1 != hash2 {
			t.Fatalf("%x: %s, hash %x; %s, hash %x", command, result1, hash1, result2, hash2)
		}
	})
}

// FuzzRestore restores arbitrary bodies, and valid bodies with arbitrary records.
func FuzzRestore(f *testing.F) {
	s := openStore(f, engine.NewMemory(), Options{})
	do(f, s, put("a", "1"), put("a\x00", "2"), remove("a"), Command{Op: OpTick, Term: 1, ElapsedMillis: 5})
	f.Add(bodyOf(f, s), "v", "x")
	f.Add([]byte{}, string(layout.AppendVersionKey(nil, []byte("a"), 1)), "\x01")
	f.Add([]byte{}, string(layout.ChangeKey(nil, 1, 0)), "\x01\x00\x01\x00\x00\x01a")
	f.Add([]byte{}, string(layout.TimeKey(1)), "\x01\x05")
	f.Add([]byte{}, "s", "\x01{}")
	f.Add([]byte{}, "h", "\x01\x02\x00")
	f.Fuzz(func(t *testing.T, body []byte, key, value string) {
		if len(body) == 0 {
			body = forgedBody(t, layout.Meta{Revision: layout.FirstRevision, Compact: layout.FirstRevision, Rest: emptyHash()}, key, value)
		}
		s := openStore(t, engine.NewMemory(), Options{})
		defer s.Close()
		if err := s.Restore(bytes.NewReader(body)); err != nil {
			if s.exec.failed != nil || s.Position() != (Position{}) || s.Revision() != layout.FirstRevision {
				t.Fatalf("%v, and the state has changed (%v)", err, s.exec.failed)
			}
			return
		}
		contentOf(t, s)
		do(t, s, put("b", "1"), Command{Op: OpCompact, Revision: s.Revision()})
		maintainAll(t, s)
	})
}

// FuzzStoreIsTheModel applies histories of commands of every kind, which follow from the
// input, and compares the store with the model after each part.
func FuzzStoreIsTheModel(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed, seed, uint8(20))
	}
	f.Fuzz(func(t *testing.T, seed1, seed2 uint64, length uint8) {
		rng := rand.New(rand.NewPCG(seed1, seed2))
		h := newHistory()
		r := newReplica(t, rng, h, "memory", int(length)%5)
		for range 4 {
			for range length / 4 {
				h.extend(rng)
			}
			r.catchUp()
			r.check()
		}
		must(t, r.store.Close())
	})
}
