package etcdfile

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"
)

// The buckets of etcd's storage. All of them exist in every database of etcd.
var (
	keyBucket   = []byte("key")
	metaBucket  = []byte("meta")
	leaseBucket = []byte("lease")
	allBuckets  = [][]byte{keyBucket, metaBucket, leaseBucket, []byte("alarm"), []byte("cluster"), []byte("members"), []byte("members_removed"),
		[]byte("auth"), []byte("authUsers"), []byte("authRoles")}
)

// The entries of the bucket meta. etcd rewrites the first two when it restores the file.
const (
	consistentIndex           = "consistent_index"
	term                      = "term"
	scheduledCompaction       = "scheduledCompactRev"
	finishedCompaction        = "finishedCompactRev"
	batchBytes                = 4 << 20
	batchPairs                = 10_000
	partialSuffix             = ".partial"
	filePermissions           = 0o600 // values may be secrets
	leastTTL            int64 = 1
)

// Pair is a key with its value and metadata.
type Pair struct {
	Key, Value                                  []byte
	CreateRevision, ModRevision, Version, Lease int64
}

// Writer writes a file. Its use is Create, Lease and Pair in any order, and Finish or Abort.
type Writer struct {
	name  string
	db    *bolt.DB
	tx    *bolt.Tx
	pairs uint64
	bytes int // in tx
	open  int // pairs in tx
}

// Create begins a file, which gets its name when it is finished. A file that an earlier
// attempt left is overwritten.
func Create(name string) (*Writer, error) {
	partial := name + partialSuffix
	if err := os.Remove(partial); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Synced once, at the end: before, the file is of no use.
	db, err := bolt.Open(partial, filePermissions, &bolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", partial, err)
	}
	w := &Writer{name: name, db: db}
	if err := w.begin(); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	for _, b := range allBuckets {
		if _, err := w.tx.CreateBucketIfNotExists(b); err != nil {
			return nil, errors.Join(err, w.Abort())
		}
	}
	return w, nil
}

func (w *Writer) begin() (err error) {
	w.tx, err = w.db.Begin(true)
	w.bytes, w.open = 0, 0
	return err
}

// Lease adds a lease with its time to live in seconds, which it has anew once the file is
// restored.
func (w *Writer) Lease(id, ttl int64) error {
	value, err := proto.Marshal(&leasepb.Lease{ID: id, TTL: max(ttl, leastTTL)})
	if err != nil {
		return err
	}
	return w.put(leaseBucket, binary.BigEndian.AppendUint64(nil, uint64(id)), value)
}

// HasLease reports whether a lease was added.
func (w *Writer) HasLease(id int64) bool {
	return w.tx.Bucket(leaseBucket).Get(binary.BigEndian.AppendUint64(nil, uint64(id))) != nil
}

// Pair adds a pair.
func (w *Writer) Pair(p *Pair) error {
	value, err := proto.Marshal(&mvccpb.KeyValue{
		Key: p.Key, Value: p.Value, CreateRevision: p.CreateRevision, ModRevision: p.ModRevision, Version: p.Version, Lease: p.Lease,
	})
	if err != nil {
		return err
	}
	key := revisionKey(p.ModRevision, w.pairs)
	w.pairs++
	return w.put(keyBucket, key, value)
}

// revisionKey is a revision as etcd's storage writes it.
func revisionKey(main int64, sub uint64) []byte {
	key := binary.BigEndian.AppendUint64(make([]byte, 0, 17), uint64(main))
	return binary.BigEndian.AppendUint64(append(key, '_'), sub)
}

func (w *Writer) put(bucket, key, value []byte) error {
	if err := w.tx.Bucket(bucket).Put(key, value); err != nil {
		return err
	}
	w.bytes, w.open = w.bytes+len(key)+len(value), w.open+1
	if w.bytes < batchBytes && w.open < batchPairs {
		return nil
	}
	if err := w.tx.Commit(); err != nil {
		return err
	}
	return w.begin()
}

// Pairs returns how many pairs were added.
func (w *Writer) Pairs() uint64 { return w.pairs }

// Finish writes what remains, the revision of all, and the hash, and gives the file its name.
func (w *Writer) Finish(revision uint64) error {
	meta := w.tx.Bucket(metaBucket)
	at := revisionKey(int64(revision), 0)
	err := errors.Join(
		meta.Put([]byte(scheduledCompaction), at), meta.Put([]byte(finishedCompaction), at),
		meta.Put([]byte(consistentIndex), make([]byte, 8)), meta.Put([]byte(term), make([]byte, 8)),
	)
	if err == nil {
		err = w.tx.Commit()
		w.tx = nil
	}
	if err == nil {
		err = w.db.Close()
	}
	if err == nil {
		err = seal(w.name + partialSuffix)
	}
	if err == nil {
		err = os.Rename(w.name+partialSuffix, w.name)
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	return nil
}

// seal appends the hash of a file, and makes it durable.
func seal(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if _, err := f.Write(h.Sum(nil)); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Abort removes what was written.
func (w *Writer) Abort() error {
	var err error
	if w.tx != nil {
		err = w.tx.Rollback()
	}
	return errors.Join(err, w.db.Close(), os.Remove(w.name+partialSuffix))
}
