package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/kvd-io/kvd/internal/kvstore/body"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
	"github.com/kvd-io/kvd/internal/kvstore/tally"
)

// bodyStore has several blocks and all tables.
func bodyStore(t testing.TB, name string, rng *rand.Rand) *Store {
	s := newStore(t, name)
	settings := DefaultSettings()
	do(t, s, Command{Op: OpSettings, Settings: settings.Change()}, Command{Op: OpTick, Term: 1, ElapsedMillis: 5})
	value := make([]byte, 60<<10)
	for i := range 12 {
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		do(t, s, put(fmt.Sprint("key", i%8), string(value)))
	}
	do(t, s, remove("key1"), Command{Op: OpCompact, Revision: 4})
	maintainAll(t, s)
	must(t, s.Apply([]Entry{{Index: s.Position().Index + 1, Term: 1, Records: []Record{recordOf("r", "1")}}}))
	return s
}

// TestBodyMovesBetweenEngines: a restore from any engine to any engine gives the same
// bytes and the same state.
func TestBodyMovesBetweenEngines(t *testing.T) {
	for _, from := range []string{"memory", "pebble"} {
		s := bodyStore(t, from, testRand(t))
		body := bodyOf(t, s)
		info, err := VerifyBody(iotest.OneByteReader(bytes.NewReader(body)))
		must(t, err)
		if at, hash := s.StateHash(); info.Position != at || info.StateHash != hash || info.Keys != 7 {
			t.Errorf("%+v", info)
		}
		for _, to := range []string{"memory", "pebble"} {
			restored := newStore(t, to)
			do(t, restored, put("old", "1"), put("key0", "old"))
			must(t, restored.Restore(bytes.NewReader(body)))
			if !bytes.Equal(bodyOf(t, restored), body) {
				t.Errorf("from %s to %s: another body", from, to)
			}
			checkCounters(t, restored)
			do(t, s, put("next", "1"), appendTo("key2", "1"))
			do(t, restored, put("next", "1"), appendTo("key2", "1"))
			checkCounters(t, restored)
			must(t, s.Restore(bytes.NewReader(body)))
		}
	}
}

func TestEmptyBody(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		body := bodyOf(t, newStore(t, "memory"))
		do(t, s, put("a", "1"))
		must(t, s.Restore(bytes.NewReader(body)))
		if s.Revision() != 1 || s.Position() != (Position{}) || len(contentOf(t, s)) > 0 {
			t.Error("not empty")
		}
		checkCounters(t, s)
		do(t, s, put("a", "1"))
	})
}

// checkRefused restores a damaged body and checks that the old state is still there.
func checkRefused(t *testing.T, s *Store, body io.Reader, how string) {
	t.Helper()
	at, hash := s.StateHash()
	var unknown *UnknownVersionError
	if err := s.Restore(body); !errors.Is(err, ErrBody) && !errors.As(err, &unknown) {
		t.Fatalf("%s: %v", how, err)
	}
	if atNow, hashNow := s.StateHash(); at != atNow || hash != hashNow {
		t.Fatalf("%s: the state changed", how)
	}
}

// TestDamagedBody changes bytes everywhere: each byte of the parts that are short and
// not compressed, and some of the others.
func TestDamagedBody(t *testing.T) {
	rng := testRand(t)
	body := bodyOf(t, bodyStore(t, "memory", rng))
	s := newStore(t, "memory")
	do(t, s, put("old", "1"))
	damage := func(i int) {
		bad := bytes.Clone(body)
		bad[i] ^= 1 << rng.IntN(8)
		checkRefused(t, s, bytes.NewReader(bad), fmt.Sprintf("byte %d of %d", i, len(body)))
	}
	end := len(body) - 200 // the last section's end, and the trailer
	for i := range 100 {
		damage(i)
	}
	for i := end; i < len(body); i++ {
		damage(i)
	}
	for range 100 {
		damage(rng.IntN(len(body)))
	}
	for range 50 {
		n := rng.IntN(len(body))
		checkRefused(t, s, bytes.NewReader(body[:n]), fmt.Sprintf("cut off at %d", n))
	}
	checkRefused(t, s, io.MultiReader(bytes.NewReader(body), strings.NewReader("x")), "something after it")
	if got := fmt.Sprint(contentOf(t, s)); got != `["old"="1" create 2 mod 2 version 1 lease 0]` {
		t.Errorf("content: %s", got)
	}
	checkCounters(t, s)
	do(t, s, put("new", "1"))
}

// TestRestoreThatFails: a restore that fails keeps the state, and wraps the error of
// the reader.
func TestRestoreThatFails(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		body := bodyOf(t, bodyStore(t, "memory", testRand(t)))
		do(t, s, put("old", "1"))
		broken := errors.New("connection lost")
		err := s.Restore(io.MultiReader(bytes.NewReader(body[:len(body)-10]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrBody) {
			t.Errorf("error: %v", err)
		}
		checkRefused(t, s, bytes.NewReader(body[:len(body)-1]), "cut off")
		if got := fmt.Sprint(contentOf(t, s)); got != `["old"="1" create 2 mod 2 version 1 lease 0]` {
			t.Errorf("content: %s", got)
		}
		do(t, s, appendTo("old", "2"))
		checkCounters(t, s)
		must(t, s.Restore(bytes.NewReader(body)))
		checkCounters(t, s)
	})
}

// sectionOf returns the place of a table among the sections, and its name.
func sectionOf(table byte) (int, string) {
	for i, s := range bodySections {
		if s.table == table {
			return i, s.name
		}
	}
	return len(bodySections), string(table)
}

// forgedBody returns a body with arbitrary records, by their keys in the engine, and valid
// checksums.
func forgedBody(t testing.TB, m layout.Meta, records ...string) []byte {
	var out bytes.Buffer
	b, err := body.NewWriter(&out)
	must(t, err)
	table := byte(0)
	for i := 0; i < len(records); i += 2 {
		if records[i] == "" {
			continue
		}
		if records[i][0] != table {
			table = records[i][0]
			_, name := sectionOf(table)
			must(t, b.Section(name, sectionVersion))
		}
		must(t, b.Add([]byte(records[i][1:]), []byte(records[i+1])))
	}
	must(t, b.Finish(body.Trailer{Index: m.Position.Index, Term: m.Position.Term, Revision: m.Revision, CompactRevision: m.Compact, StateHash: m.Hash()}))
	return out.Bytes()
}

// recordOfPut is the change log of revision 2, which created a.
const recordOfPut = "\x01\x00\x01\x00\x00\x01a"

// TestForgedBody: valid checksums do not make a valid state.
func TestForgedBody(t *testing.T) {
	var h statehash.Hasher
	v := layout.Version{Create: 2, Version: 1, Value: []byte("1")}
	good := layout.Meta{Position: Position{Index: 1, Term: 1}, Revision: 2, Compact: 1, Keys: 1, Logical: layout.LogicalBytes(1, 1)}
	good.Rest, good.Pairs = emptyHash(), h.Key([]byte("a"), 2, &v)
	versionKey := func(key string, revision uint64) string {
		return string(layout.AppendVersionKey(nil, []byte(key), revision))
	}
	key, value, log := versionKey("a", 2), string(layout.AppendVersion(nil, 2, &v)), string(layout.ChangeKey(nil, 2, 0))
	metaOf := func(change func(m *layout.Meta)) (layout.Meta, string) {
		m := good
		change(&m)
		return m, string(layout.AppendMeta(nil, &m))
	}
	_, goodMeta := metaOf(func(*layout.Meta) {})
	restore := func(m layout.Meta, records ...string) error {
		return newStore(t, "memory").Restore(bytes.NewReader(forgedBody(t, m, records...)))
	}
	must(t, restore(good, "m", goodMeta, key, value, log, recordOfPut))

	cases := map[string]error{
		"sections in the wrong order": restore(good, key, value, log, recordOfPut, "m", goodMeta),
		"a section twice":             restore(good, "m", goodMeta, key, value, log, recordOfPut, key, value),
		"no meta":                     restore(good, key, value, log, recordOfPut),
		"no data":                     restore(good, "m", goodMeta),
		"another trailer":             restore(layout.Meta{}, "m", goodMeta, key, value, log, recordOfPut),
		"an unknown section":          restore(good, "m", goodMeta, key, value, log, recordOfPut, "z", "1"),
	}
	// Records in the place of the good ones, or beside them.
	for name, records := range map[string][]string{
		"a key twice":            {"m", goodMeta, key, value, key, value, log, recordOfPut},
		"a change key":           {"m", goodMeta, key, value, "c", recordOfPut},
		"a malformed change":     {"m", goodMeta, key, value, log, "\x01\x00\x01\x00\x00\x05a"},
		"no changes":             {"m", goodMeta, key, value},
		"another change":         {"m", goodMeta, key, value, log, "\x01\x00\x01\x00\x00\x01b"},
		"a change twice":         {"m", goodMeta, key, value, log, "\x01\x00\x02\x00\x00\x01a\x00\x01\x00"},
		"a deletion in the log":  {"m", goodMeta, key, value, log, "\x01\x00\x01\x01\x00\x01a"},
		"a replaced version":     {"m", goodMeta, key, value, log, "\x01\x00\x01\x02\x00\x01a\x01\x08"},
		"history of one replica": {"m", goodMeta, key, value, log, recordOfPut, "h", "\x01\x03\x00"},
		"a meta key":             {"m", goodMeta, "mm", goodMeta, key, value, log, recordOfPut},
		"a malformed meta":       {"m", goodMeta + "\x00", key, value, log, recordOfPut},
		"a settings key":         {"m", goodMeta, "ss", "\x01{}", key, value, log, recordOfPut},
		"malformed settings":     {"m", goodMeta, "s", "\x01{", key, value, log, recordOfPut},
		"a time key":             {"m", goodMeta, "t1", "\x01\x01", key, value, log, recordOfPut},
		"a malformed time":       {"m", goodMeta, string(layout.TimeKey(1)), "\x01", key, value, log, recordOfPut},
		"a time of the future":   {"m", goodMeta, string(layout.TimeKey(3)), "\x01\x05", key, value, log, recordOfPut},
		"a version key":          {"m", goodMeta, key, value, "vv", value, log, recordOfPut},
		"an unfinished escape":   {"m", goodMeta, "v\x00\x00\x0112345678", value, key, value, log, recordOfPut},
		"a wrong escape":         {"m", goodMeta, "va\x00\x00\x0112345678", value, key, value, log, recordOfPut},
		"a malformed version":    {"m", goodMeta, key, "\x02", log, recordOfPut},
		"a version too many":     {"m", goodMeta, key, value, versionKey("a", 1), "\x00\x00\x01", log, recordOfPut},
		"a version of the future": {
			"m", goodMeta, key, value, versionKey("b", 3), "\x01", log, recordOfPut, string(layout.ChangeKey(nil, 3, 0)), "\x01\x00\x01\x01\x00\x01b",
		},
		"a version of no revision": {"m", goodMeta, key, value, versionKey("b", 0), "\x01", log, recordOfPut},
		"a change of the future":   {"m", goodMeta, key, value, log, recordOfPut, string(layout.ChangeKey(nil, 3, 0)), "\x01\x00\x01\x00\x00\x01a"},
	} {
		cases[name] = restore(good, records...)
	}
	compacted, compactedMeta := metaOf(func(m *layout.Meta) { m.Compact, m.Rest = 2, m.Rest+h.Times(0, 2) })
	must(t, restore(compacted, "m", compactedMeta, string(layout.TimeKey(2)), "\x01\x05", key, value, log, recordOfPut))
	cases["a version before the compact one"] = restore(compacted, "m", compactedMeta, key, value, versionKey("a", 1), "\x00\x00\x01", log, recordOfPut)
	cases["a deletion before the compact revision"] = restore(compacted, "m", compactedMeta, key, value, versionKey("b", 1), "\x01", log, recordOfPut)
	for name, compact := range map[string]uint64{"compacted beyond the newest": 3, "compacted to nothing": 0} {
		m, b := metaOf(func(m *layout.Meta) { m.Compact = compact })
		cases[name] = restore(m, "m", b, key, value, log, recordOfPut)
	}
	for name, change := range map[string]func(*layout.Meta){
		"keys": func(m *layout.Meta) { m.Keys++ }, "bytes": func(m *layout.Meta) { m.Logical-- }, "hash": func(m *layout.Meta) { m.Pairs++ }, "rest of the hash": func(m *layout.Meta) { m.Rest++ },
	} {
		m, b := metaOf(change)
		cases["another count of "+name] = restore(m, "m", b, key, value, log, recordOfPut)
	}
	for name, err := range cases {
		if !errors.Is(err, ErrBody) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEqualStatesHaveEqualBodies: replicas that got there by calls of different sizes, and
// that have removed different parts of the history, write the same bytes.
func TestEqualStatesHaveEqualBodies(t *testing.T) {
	rng := testRand(t)
	h := newHistory()
	for range 300 {
		h.extend(rng)
	}
	var want []byte
	for i, kind := range []string{"memory", "pebble", "memory"} {
		r := newReplica(t, rng, h, kind, 4)
		r.catchUp()
		if i == 2 {
			maintainAll(t, r.store)
		}
		got := bodyOf(t, r.store)
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("replica %d has another body", i)
		}
		must(t, r.store.Close())
	}
}

// TestLargeRevisionInABody: the parts of a revision that does not fit into a record stay as
// they are.
func TestLargeRevisionInABody(t *testing.T) {
	s := newStore(t, "memory")
	e := Entry{Index: 1, Term: 1}
	for i := range 5000 {
		c := put(fmt.Sprintf("%040d", i), "")
		e.Commands = append(e.Commands, EncodeCommand(nil, &c))
	}
	must(t, s.Apply([]Entry{e}))
	do(t, s, deleteRange("0", "1"))
	do(t, s, put("a", "1"))
	body := bodyOf(t, s)
	restored := newStore(t, "pebble")
	must(t, restored.Restore(bytes.NewReader(body)))
	if got := bodyOf(t, restored); !bytes.Equal(got, body) {
		t.Error("a restored store has another body")
	}
	events := 0
	_, err := restored.Changes(t.Context(), 5002, func(c Change) (bool, error) {
		events += len(c.Events)
		return true, nil
	})
	if must(t, err); events != 5001 {
		t.Errorf("%d events", events)
	}
	do(t, restored, Command{Op: OpCompact, Revision: restored.Revision()})
	maintainAll(t, restored)
	if st := restored.Stats(); st.HistoryVersions != 0 {
		t.Errorf("left: %+v", st)
	}
	checkCounters(t, restored)
}

// TestBodyWriterFails: an error of the writer is reported, wherever it happens.
func TestBodyWriterFails(t *testing.T) {
	s := bodyStore(t, "memory", testRand(t))
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	size := len(bodyOf(t, s))
	for _, limit := range []int{0, 1, 9, 20, size / 2, size - 1} {
		if _, err := v.WriteTo(&fullDisk{left: limit}); !errors.Is(err, errDiskFull) {
			t.Errorf("full after %d bytes: %v", limit, err)
		}
	}
}

var errDiskFull = errors.New("disk full")

type fullDisk struct{ left int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if len(p) > d.left {
		return d.left, errDiskFull
	}
	d.left -= len(p)
	return len(p), nil
}

// TestCountAfterARestore: counts of the old state do not move along the change log of the
// new one.
func TestCountAfterARestore(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		s.tally = tally.New(1)
		from := newStore(t, "memory")
		for i := range 10 {
			do(t, s, put(fmt.Sprint("a", i), ""))
			do(t, from, put(fmt.Sprint("b", i), ""), put(fmt.Sprint("c", i), ""))
		}
		for _, want := range []uint64{8, 18} {
			n, _, err := s.Count(context.Background(), Range{Start: []byte("a2"), End: []byte("c8")})
			if err != nil || n != want {
				t.Errorf("counted %d, %v; want %d", n, err, want)
			}
			must(t, s.Restore(bytes.NewReader(bodyOf(t, from))))
		}
	})
}
