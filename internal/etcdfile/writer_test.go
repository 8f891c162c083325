package etcdfile

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// The file has a hash of all that comes before it, and every pair under a revision of its
// own, over several batches.
func TestFile(t *testing.T) {
	const pairs = batchPairs + 100
	name := filepath.Join(t.TempDir(), "kvd.db")
	if err := os.WriteFile(name+partialSuffix, []byte("left of an attempt"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Lease(7, 0); err != nil || !w.HasLease(7) || w.HasLease(8) {
		t.Fatal(err, w.HasLease(7), w.HasLease(8))
	}
	for i := range pairs {
		p := &Pair{Key: fmt.Appendf(nil, "k%d", i), Value: []byte{0xff, byte(i)}, CreateRevision: 2, ModRevision: int64(2 + i%3), Version: 3, Lease: 7}
		if err := w.Pair(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("the file has its name before it is complete")
	}
	if err := w.Finish(9); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	body, sum := content[:len(content)-sha256.Size], content[len(content)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) || len(body)%512 != 0 {
		t.Errorf("the hash of %d bytes is wrong", len(body))
	}
	if err := os.WriteFile(name+".body", body, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(name+".body", 0, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	seen := make(map[string]bool)
	err = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		if got := tx.Bucket(metaBucket).Get([]byte(finishedCompaction)); !bytes.Equal(got, revisionKey(9, 0)) {
			t.Errorf("compacted at %x", got)
		}
		return tx.Bucket(keyBucket).ForEach(func(k, v []byte) error {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(v, &kv); err != nil {
				return err
			}
			if !bytes.HasPrefix(k, revisionKey(kv.GetModRevision(), 0)[:9]) || kv.GetLease() != 7 || kv.GetVersion() != 3 {
				t.Errorf("%x: %v", k, &kv)
			}
			seen[string(kv.GetKey())] = true
			return nil
		})
	})
	if err != nil || len(seen) != pairs {
		t.Fatalf("%d pairs, %v", len(seen), err)
	}
}

// What is given up leaves nothing.
func TestAbort(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kvd.db")
	w, err := Create(name)
	if err == nil {
		err = w.Abort()
	}
	left, _ := filepath.Glob(name + "*") // the pattern is fine
	if err != nil || len(left) > 0 {
		t.Errorf("%v, left: %q", err, left)
	}
}
