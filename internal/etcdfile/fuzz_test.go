package etcdfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"
)

// FuzzWriter: bbolt, protobuf, and SHA-256 find in a file what was written to it, however
// the pairs are ordered and whatever their numbers are.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), int64(2), int64(7), int64(60))
	f.Add([]byte{}, bytes.Repeat([]byte{0xff}, 5000), int64(-1), int64(-1), int64(0))
	f.Add([]byte("\x00"), []byte{}, int64(1)<<62, int64(0), int64(-5))
	f.Fuzz(func(t *testing.T, key, value []byte, revision, lease, ttl int64) {
		name := filepath.Join(t.TempDir(), "kvd.db")
		w, err := Create(name)
		if err != nil {
			t.Fatal(err)
		}
		pairs := []*Pair{
			{Key: key, Value: value, ModRevision: revision, CreateRevision: 2, Version: 3, Lease: lease},
			{Key: append(bytes.Clone(key), 1), Value: key, ModRevision: revision, CreateRevision: 1, Version: 1},
			{Key: value, Value: value, ModRevision: revision - 1},
		}
		for _, p := range pairs {
			if err := w.Pair(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Lease(lease, ttl); err != nil || !w.HasLease(lease) || w.HasLease(lease+1) {
			t.Fatal(err)
		}
		if err := w.Finish(uint64(revision)); err != nil || w.Pairs() != uint64(len(pairs)) {
			t.Fatalf("%d pairs, %v", w.Pairs(), err)
		}
		body := unsealed(t, name)
		db, err := bolt.Open(body, 0, &bolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.View(func(tx *bolt.Tx) error { checkFile(t, tx, pairs, lease, ttl); return nil }); err != nil {
			t.Fatal(err)
		}
	})
}

// unsealed checks the hash of a file, and returns the name of the database before it.
func unsealed(t *testing.T, name string) string {
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	at := len(content) - sha256.Size
	if want := sha256.Sum256(content[:at]); !bytes.Equal(content[at:], want[:]) {
		t.Fatal("the hash is wrong")
	}
	if err := os.Truncate(name, int64(at)); err != nil {
		t.Fatal(err)
	}
	return name
}

func checkFile(t *testing.T, tx *bolt.Tx, pairs []*Pair, lease, ttl int64) {
	found := 0
	err := tx.Bucket(keyBucket).ForEach(func(k, v []byte) error {
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(v, &kv); err != nil {
			return err
		}
		p := pairs[binary.BigEndian.Uint64(k[9:])] // they are numbered through
		if !bytes.HasPrefix(k, revisionKey(p.ModRevision, 0)[:9]) || !bytes.Equal(kv.GetKey(), p.Key) || !bytes.Equal(kv.GetValue(), p.Value) || kv.GetLease() != p.Lease ||
			kv.GetModRevision() != p.ModRevision || kv.GetCreateRevision() != p.CreateRevision || kv.GetVersion() != p.Version {
			t.Errorf("%x: %v, want %+v", k, &kv, p)
		}
		found++
		return nil
	})
	if err != nil || found != len(pairs) {
		t.Errorf("%d pairs, %v", found, err)
	}
	var l leasepb.Lease
	if err := proto.Unmarshal(tx.Bucket(leaseBucket).Get(binary.BigEndian.AppendUint64(nil, uint64(lease))), &l); err != nil || l.ID != lease || l.TTL != max(ttl, 1) {
		t.Errorf("lease %v, %v; want %d with %d", &l, err, lease, ttl)
	}
}
