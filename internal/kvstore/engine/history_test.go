package engine

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"testing"
)

// testSeed is KVD_TEST_SEED where that is set, to repeat a failure.
func testSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("KVD_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("KVD_TEST_SEED=%d", seed)
	return seed
}

// history makes random moves on an engine and on a plain map, and compares.
type history struct {
	t      *testing.T
	rng    *rand.Rand
	tested testedEngine
	engine Engine
	batch  WriteBatch
	model  map[string]string
	views  []view
}

// view is a snapshot with what it must show.
type view struct {
	snapshot Snapshot
	model    map[string]string
}

func testRandomHistory(t *testing.T, tested testedEngine) {
	const steps = 1500
	h := &history{
		t:      t,
		rng:    rand.New(rand.NewPCG(testSeed(t), 0)),
		tested: tested,
		model:  map[string]string{},
	}
	h.engine = tested.open(t)
	h.batch = h.engine.NewWriteBatch()
	for range steps {
		h.step()
	}
	h.closeAll()
	wantContent(t, h.engine, h.model)
	must(t, h.engine.Close())
}

func (h *history) step() {
	switch n := h.rng.IntN(100); {
	case n < 45:
		h.commit()
	case n < 65:
		h.get(h.someReader())
	case n < 85:
		h.walk(h.someReader())
	case n < 89:
		h.views = append(h.views, view{h.engine.Snapshot(), maps.Clone(h.model)})
	case n < 93:
		h.closeView()
	case n < 97:
		must(h.t, h.engine.Flush())
	case n < 98:
		h.replace()
	case n < 99 && h.tested.reopen != nil:
		h.reopen()
	}
}

func (h *history) key() string {
	key := testKey(h.rng.IntN(400))[2:]
	if h.rng.IntN(2) == 0 {
		key += fmt.Sprintf("@%d", h.rng.IntN(5))
	}
	return key
}

func (h *history) value() string {
	// Long enough, often enough, to fill memtables and reach lower levels.
	return fmt.Sprintf("%0*d", h.rng.IntN(300), h.rng.IntN(1000))
}

func (h *history) commit() {
	for range h.rng.IntN(20) {
		key := h.key()
		if h.rng.IntN(4) == 0 {
			h.batch.Delete([]byte(key))
			delete(h.model, key)
			continue
		}
		value := h.value()
		h.batch.Set([]byte(key), []byte(value))
		h.model[key] = value
	}
	must(h.t, h.batch.Commit())
}

// someReader picks the engine itself or a snapshot.
func (h *history) someReader() (Reader, map[string]string) {
	if n := h.rng.IntN(len(h.views) + 1); n < len(h.views) {
		return h.views[n].snapshot, h.views[n].model
	}
	return h.engine, h.model
}

func (h *history) get(r Reader, model map[string]string) {
	key := h.key()
	got, err := r.Get(nil, []byte(key))
	want, found := model[key]
	if errors.Is(err, ErrNotFound) == found || string(got) != want {
		h.t.Fatalf("Get(%q) = %q, %v; want %q, %v", key, got, err, want, found)
	}
}

// bounds are often those of the versions of one key, or open.
func (h *history) bounds() (lower, upper string) {
	if h.rng.IntN(3) == 0 {
		prefix := testKey(h.rng.IntN(400))[2:]
		return prefix + "@0", prefix + fmt.Sprintf("@%d", h.rng.IntN(6))
	}
	if h.rng.IntN(3) > 0 {
		lower = h.key()
	}
	if h.rng.IntN(3) > 0 {
		upper = h.key()
	}
	return lower, upper
}

func (h *history) walk(r Reader, model map[string]string) {
	lower, upper := h.bounds()
	it, err := r.Iter(bound(lower), bound(upper))
	must(h.t, err)
	m := newModelIter(model, lower, upper)
	trace := fmt.Sprintf("[%q, %q)", lower, upper)
	for range h.rng.IntN(60) {
		move := h.move(m.positioned)
		trace += " " + move
		got, want := makeMove(it, move), m.move(move)
		if got != want || want && (string(it.Key()) != m.key() || string(it.Value()) != model[m.key()]) {
			h.t.Fatalf("%s: %v %q; want %v %q", trace, got, it.Key(), want, m.key())
		}
	}
	must(h.t, it.Err())
	must(h.t, it.Close())
}

func (h *history) move(positioned bool) string {
	n := h.rng.IntN(16)
	if !positioned {
		n %= 4
	}
	switch {
	case n == 0:
		return "F"
	case n == 1:
		return "L"
	case n == 2:
		return ">" + h.key()
	case n == 3:
		return "<" + h.key()
	case n < 10:
		return "N"
	}
	return "P"
}

func (h *history) closeView() {
	if len(h.views) == 0 {
		return
	}
	n := h.rng.IntN(len(h.views))
	wantContent(h.t, h.views[n].snapshot, h.views[n].model)
	must(h.t, h.views[n].snapshot.Close())
	h.views = slices.Delete(h.views, n, n+1)
}

func (h *history) closeAll() {
	for len(h.views) > 0 {
		h.closeView()
	}
	must(h.t, h.batch.Close())
}

func (h *history) replace() {
	next := map[string]string{}
	for range h.rng.IntN(300) {
		next[h.key()] = h.value()
	}
	must(h.t, h.engine.Replace(func(set func(key, value []byte) error) error {
		for _, key := range slices.Sorted(maps.Keys(next)) {
			if err := set([]byte(key), []byte(next[key])); err != nil {
				return err
			}
		}
		return nil
	}))
	h.model = next
}

func (h *history) reopen() {
	h.closeAll()
	h.engine = h.tested.reopen(h.t, h.engine)
	h.batch = h.engine.NewWriteBatch()
	wantContent(h.t, h.engine, h.model)
}

// modelIter walks a sorted list. at is -1 before the first key and len(keys)
// after the last.
type modelIter struct {
	keys       []string
	at         int
	positioned bool
}

func newModelIter(model map[string]string, lower, upper string) *modelIter {
	m := &modelIter{}
	for _, key := range slices.Sorted(maps.Keys(model)) {
		if key >= lower && (upper == "" || key < upper) {
			m.keys = append(m.keys, key)
		}
	}
	return m
}

func (m *modelIter) move(move string) bool {
	m.positioned = true
	switch move[0] {
	case 'F':
		m.at = 0
	case 'L':
		m.at = len(m.keys) - 1
	case 'N':
		m.at = min(m.at+1, len(m.keys))
	case 'P':
		m.at = max(m.at-1, -1)
	case '>':
		m.at = sort.SearchStrings(m.keys, move[1:])
	case '<':
		m.at = sort.SearchStrings(m.keys, move[1:]) - 1
	}
	return m.at >= 0 && m.at < len(m.keys)
}

func (m *modelIter) key() string {
	if m.at < 0 || m.at >= len(m.keys) {
		return ""
	}
	return m.keys[m.at]
}
