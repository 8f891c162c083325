package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
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
	end := len(body) - blockHeadLen - 8*(bodyTrailFlds+1)
	for i := range bodyHeadLen + blockHeadLen {
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

// forgedBody returns a body with arbitrary records and valid checksums.
func forgedBody(t testing.TB, m meta, records ...string) []byte {
	var out bytes.Buffer
	b, err := newBodyWriter(&out)
	must(t, err)
	for i := 0; i < len(records); i += 2 {
		must(t, b.add([]byte(records[i]), []byte(records[i+1])))
	}
	must(t, b.finish(&m))
	return out.Bytes()
}

// TestForgedBody: valid checksums do not make a valid state.
func TestForgedBody(t *testing.T) {
	var h hasher
	v := version{create: 2, version: 1, value: []byte("1")}
	good := meta{position: Position{Index: 1, Term: 1}, revision: 2, compact: 1, keys: 1, logical: logicalBytes(1, 1)}
	good.rest, good.pairs = emptyHash(), h.key([]byte("a"), 2, &v)
	key, value := string(appendVersionKey(nil, []byte("a"), 2)), string(appendVersion(nil, 2, &v))
	metaOf := func(change func(m *meta)) (meta, string) {
		m := good
		change(&m)
		return m, string(appendMeta(nil, &m))
	}
	_, goodMeta := metaOf(func(*meta) {})
	restore := func(m meta, records ...string) error {
		return newStore(t, "memory").Restore(bytes.NewReader(forgedBody(t, m, records...)))
	}
	must(t, restore(good, "m", goodMeta, key, value))

	cases := map[string]error{
		"keys in the wrong order": restore(good, key, value, "m", goodMeta),
		"a key twice":             restore(good, "m", goodMeta, key, value, key, value),
		"the empty key":           restore(good, "", "", "m", goodMeta, key, value),
		"no meta":                 restore(good, key, value),
		"no data":                 restore(good, "m", goodMeta),
		"another trailer":         restore(meta{}, "m", goodMeta, key, value),
		"an unknown table":        restore(good, "m", goodMeta, key, value, "z", "1"),
		"a change key":            restore(good, "c", "\x01", "m", goodMeta, key, value),
		"a malformed change":      restore(good, string(changeKey(nil, 2, 0)), "\x01\x00\x01\x00\x00\x05a", "m", goodMeta, key, value),
		"a malformed history":     restore(good, "h", "\x01", "m", goodMeta, key, value),
		"a history key":           restore(good, "hh", "\x01\x01", "m", goodMeta, key, value),
		"a meta key":              restore(good, "m", goodMeta, "mm", goodMeta, key, value),
		"a malformed meta":        restore(good, "m", goodMeta+"\x00", key, value),
		"a settings key":          restore(good, "m", goodMeta, "ss", "\x01{}", key, value),
		"malformed settings":      restore(good, "m", goodMeta, "s", "\x01{", key, value),
		"a time key":              restore(good, "m", goodMeta, "t1", "\x01\x01", key, value),
		"a malformed time":        restore(good, "m", goodMeta, string(timeKey(1)), "\x01", key, value),
		"a version key":           restore(good, "m", goodMeta, key, value, "vv", value),
		"an unfinished escape":    restore(good, "m", goodMeta, "v\x00\x00\x0112345678", value, key, value),
		"a wrong escape":          restore(good, "m", goodMeta, "va\x00\x00\x0112345678", value, key, value),
		"a malformed version":     restore(good, "m", goodMeta, key, "\x02"),
		"an old version":          restore(good, "m", goodMeta, key, value, string(appendVersionKey(nil, []byte("a"), 1)), "\x02"),
	}
	for name, records := range map[string][]string{
		"a version of the future":      {"m", goodMeta, key, value, string(appendVersionKey(nil, []byte("b"), 3)), "\x01"},
		"a version of no revision":     {"m", goodMeta, key, value, string(appendVersionKey(nil, []byte("b"), 0)), "\x01"},
		"a change of the future":       {string(changeKey(nil, 3, 0)), "\x01\x00\x01\x00\x00\x01a", "m", goodMeta, key, value},
		"a time of the future":         {"m", goodMeta, string(timeKey(3)), "\x01\x05", key, value},
		"history removed that is read": {"h", "\x01\x03\x00", "m", goodMeta, key, value},
	} {
		cases[name] = restore(good, records...)
	}
	compacted, compactedMeta := metaOf(func(m *meta) { m.compact, m.rest = 2, m.rest+h.times(0, 2) })
	must(t, restore(compacted, string(changeKey(nil, 2, 0)), "\x01\x00\x01\x00\x00\x01a", "h", "\x01\x03\x00", "m", compactedMeta, string(timeKey(2)), "\x01\x05", key, value))
	for name, compact := range map[string]uint64{"compacted beyond the newest": 3, "compacted to nothing": 0} {
		m, b := metaOf(func(m *meta) { m.compact = compact })
		cases[name] = restore(m, "m", b, key, value)
	}
	for name, change := range map[string]func(*meta){
		"keys": func(m *meta) { m.keys++ }, "bytes": func(m *meta) { m.logical-- }, "hash": func(m *meta) { m.pairs++ }, "rest of the hash": func(m *meta) { m.rest++ },
	} {
		m, b := metaOf(change)
		cases["another count of "+name] = restore(m, "m", b, key, value)
	}
	for name, err := range cases {
		if !errors.Is(err, ErrBody) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostileLengths: a claimed length is not allocated before the bytes arrive.
func TestHostileLengths(t *testing.T) {
	head := append([]byte(bodyMagic), bodyVersion)
	block := func(packed, raw uint64, content []byte) []byte {
		b := make([]byte, blockHeadLen)
		putNumbers(b, packed, raw, xxhash.Sum64(content))
		return append(append(bytes.Clone(head), b...), content...)
	}
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	bomb := enc.EncodeAll(make([]byte, 2*maxBodyBlock), nil)
	for name, body := range map[string][]byte{
		"the greatest length":        block(math.MaxUint64, math.MaxUint64, nil),
		"more than a block":          block(maxBodyBlock+1, 1, nil),
		"a block that does not come": block(maxBodyBlock, maxBodyBlock, nil),
		"half an end":                block(0, 1, nil),
		"a bomb":                     block(uint64(len(bomb)), maxBodyBlock, bomb),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := VerifyBody(bytes.NewReader(body))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrBody) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

// TestBodyWriterFails: an error of the writer is reported, wherever it happens.
func TestBodyWriterFails(t *testing.T) {
	s := bodyStore(t, "memory", testRand(t))
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	size := len(bodyOf(t, s))
	for _, limit := range []int{0, 1, bodyHeadLen, size / 2, size - 1} {
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
