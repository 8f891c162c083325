package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// TestRaiseCounters: keys stay as they are, the next revision is far above, and what
// was compacted on the way costs no more than what there is of it.
func TestRaiseCounters(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		for i := range 1000 {
			do(t, s, put(fmt.Sprint("k", i%100), fmt.Sprint(i)))
		}
		do(t, s, remove("k7"), Command{Op: OpCompact, Revision: 300}, tick(5000))
		maintainAll(t, s)
		before, revision, position := contentOf(t, s), s.Revision(), s.Position()
		must(t, s.RaiseCounters())
		if s.Revision() != revision+RaisedBy || s.CompactRevision() != s.Revision() || s.Position() != position {
			t.Errorf("revision %d, compact %d, position %v after %d, %v", s.Revision(), s.CompactRevision(), s.Position(), revision, position)
		}
		if after := contentOf(t, s); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("the content is %v, was %v", after, before)
		}
		var compacted *CompactedError
		if _, _, err := s.Get([]byte("k1"), revision); !errors.As(err, &compacted) {
			t.Errorf("a read at an old revision: %v", err)
		}
		steps := 1
		for more := true; more; steps++ {
			var err error
			if more, err = s.Maintain(); err != nil {
				t.Fatal(err)
			}
			if steps > 10 {
				t.Fatalf("%+v is still to be removed after %d steps", s.Work(), steps)
			}
		}
		if s.Stats().HistoryVersions != 0 {
			t.Errorf("%+v", s.Stats())
		}
		checkCounters(t, s)
		if r := do(t, s, put("k1", "new")); r[0].Revision != revision+RaisedBy+1 {
			t.Errorf("the next revision is %d", r[0].Revision)
		}
		if _, err := VerifyBody(bytes.NewReader(bodyOf(t, s))); err != nil {
			t.Error(err)
		}
	})
}

// TestRaisedReplicasAgree: replicas that were restored from one body and raised are
// equal, and stay equal.
func TestRaisedReplicasAgree(t *testing.T) {
	s := newStore(t, "pebble")
	do(t, s, put("a", "1"), put("b", "2"))
	body := bodyOf(t, s)
	hashes := make(map[uint64]bool)
	for _, name := range []string{"pebble", "memory"} {
		r := newStore(t, name)
		must(t, r.Restore(bytes.NewReader(body)))
		must(t, r.RaiseCounters())
		do(t, r, put("a", "3"))
		_, hash := r.StateHash()
		hashes[hash] = true
	}
	if len(hashes) != 1 {
		t.Errorf("hashes %v", hashes)
	}
}

func TestInspectBody(t *testing.T) {
	s := newStore(t, "memory")
	settings := DefaultSettings()
	settings.QuotaBytes = 1 << 22
	e := entryOf(1, Command{Op: OpSettings, Settings: settings.Change()}, put("a", "1"))
	e.Records = []Record{recordOf("m", "x")}
	must(t, s.Apply([]Entry{e}))
	c, err := InspectBody(bytes.NewReader(bodyOf(t, s)))
	if err != nil || c.Settings != settings || len(c.Replication) != 1 || string(c.Replication[0].Key) != "m" || c.Keys != 1 || c.Revision != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := InspectBody(bytes.NewReader(bodyOf(t, s)[:50])); !errors.Is(err, ErrBody) {
		t.Errorf("half a body: %v", err)
	}
}
