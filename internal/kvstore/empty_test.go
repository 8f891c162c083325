package kvstore

import (
	"bytes"
	"context"
	"reflect"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// TestEmptyValues: an empty value is nil on every path that leads to it, so that replicas
// have the same results whichever of them they took. The random histories look for paths
// that are missing here.
func TestEmptyValues(t *testing.T) {
	o := &observed{}
	s := openStore(t, engine.NewMemory(), Options{Observer: o})
	defer s.Close()
	o.store = s
	key := []byte("b")
	long, keeping, lock := put("a", "a value before the empty one"), put("b", ""), Command{Op: OpLock, Key: key, Lease: 7}
	keeping.KeepValue, keeping.ReturnPrevious = true, true
	nothing := appendTo("b", "")
	nothing.ReturnPrevious = true
	reads := txnOf(Txn{Then: []Command{{Op: OpGet, Key: key}, {Op: OpList, Key: []byte("a")}, {Op: OpList, Key: []byte("a"), Read: &Read{Reverse: true}}}})
	clear := deleteRange("b", "c")
	clear.ReturnPrevious = true
	once := func(c Command, key string) Command {
		c.Idempotency = &Idempotency{Key: key}
		return c
	}
	entry := []Command{long, {Op: OpLeaseGrant, Lease: 7, TTLMillis: 1000}, put("b", ""), nothing, keeping, reads, once(reads, "1"), once(reads, "1"), once(lock, "2"), once(lock, "2"), lock}
	var found [][]Result
	found = append(found, do(t, s, entry...)) // everything is pending
	look := func(path string) {
		t.Helper()
		for _, revision := range []uint64{0, 0, s.Revision()} { // the second is a hot pair
			kv, _, err := s.Get(key, revision)
			if must(t, err); kv.Value != nil {
				t.Errorf("%s: get at %d: %#v", path, revision, kv.Value)
			}
		}
		for _, reverse := range []bool{false, true} {
			_, err := s.List(context.Background(), Range{Reverse: reverse}, func(i Item) (bool, error) {
				if i.KV.Value != nil && len(i.KV.Value) == 0 {
					t.Errorf("%s: list, reverse %t: %#v", path, reverse, i.KV.Value)
				}
				return true, nil
			})
			must(t, err)
		}
		r, err := s.ReadTxn(context.Background(), reads.Txn, anyRoom)
		must(t, err)
		_, err = s.Changes(context.Background(), 2, func(c Change) (bool, error) {
			for i := range c.Events {
				if v := c.Events[i].KV.Value; v != nil && len(v) == 0 {
					t.Errorf("%s: change: %#v", path, v)
				}
			}
			return true, nil
		})
		must(t, err)
		found = append(found, []Result{r}, do(t, s, reads, once(reads, "1"), lock, nothing))
	}
	look("applied")
	must(t, s.Restore(bytes.NewReader(bodyOf(t, s))))
	look("restored")
	found = append(found, do(t, s, clear))
	for i, results := range found {
		for j := range results {
			checkEmpty(t, i, j, &results[j])
		}
	}
	if first, again := found[0][6], found[0][7]; !again.Replayed {
		t.Error("the repeat ran")
	} else if again.Replayed = false; !reflect.DeepEqual(first, again) {
		t.Errorf("the repeat has %#v, want %#v", again, first)
	}
}

// checkEmpty demands that nothing in a result is empty without being nil.
func checkEmpty(t *testing.T, i, j int, r *Result) {
	t.Helper()
	if r.Outcome != OK {
		t.Errorf("call %d, command %d: %+v", i, j, r)
	}
	values := [][]byte{r.KV.Value}
	if r.Previous != nil {
		values = append(values, r.Previous.Value)
	}
	if r.Lock != nil {
		values = append(values, r.Lock.Body)
	}
	for _, kv := range r.Pairs {
		values = append(values, kv.Value)
	}
	for _, v := range values {
		if stray := strayText(v); stray != "" {
			t.Errorf("call %d, command %d: an empty value%s in %+v", i, j, stray, r)
		}
	}
	for k := range r.Results {
		checkEmpty(t, i, j, &r.Results[k])
	}
}
