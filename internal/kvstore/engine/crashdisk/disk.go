// Package crashdisk is a disk in memory whose power can be cut, for tests: what was not
// synced is then lost, or a part of it. It lets other packages run Pebble over crashes
// without knowing Pebble.
package crashdisk

import (
	"errors"
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

const root = "db"

// Disk holds the files of one engine.
type Disk struct{ fs *vfs.MemFS }

// New returns an empty disk.
func New() *Disk { return &Disk{vfs.NewCrashableMem()} }

// never is more sorted runs than a small store has, so that nothing compacts them.
const never = 1 << 20

// Open opens the engine on the disk. Its memtables are so large that nothing of a small
// store becomes durable before somebody asks for it, and it reads only what is asked for.
// It calls fatal, which may be nil, as PebbleOptions.OnFatal.
func (d *Disk) Open(comparer *pebble.Comparer, fatal func(error)) (engine.Engine, error) {
	return engine.OpenPebble(root, engine.PebbleOptions{
		FS: d.fs, Comparer: comparer, CacheBytes: 4 << 20, MemTableBytes: 1 << 20,
		Compaction: engine.Compaction{Runs: never}, OnFatal: fatal,
	})
}

// Rot flips a bit of a file of the engine, by its name below the engine's directory, for good.
func (d *Disk) Rot(file string, offset, bit int) error {
	f, err := d.fs.OpenReadWrite(d.fs.PathJoin(root, file), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, int64(offset))
	if err == nil {
		b[0] ^= 1 << bit
		_, err = f.WriteAt(b, int64(offset))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Cut cuts the power: the disk keeps what was synced, and of the rest what rng decides. An
// engine that is still open goes on with files that nobody will read, and has to be closed.
func (d *Disk) Cut(rng *rand.Rand) {
	d.fs = d.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
}
