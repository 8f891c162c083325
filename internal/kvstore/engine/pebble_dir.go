package engine

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The directory of an engine holds a lock file, generations named db-000001,
// db-000002, …, and the file CURRENT: one line with the name of the generation that
// counts.
const (
	currentName     = "CURRENT"
	currentTempName = "CURRENT.tmp"

	// noGeneration is what CURRENT names until the first generation is complete. A
	// crash before that can leave a database that does not open, and noGeneration
	// says that it may be removed. A directory without CURRENT is refused instead.
	noGeneration = 0
)

// pebbleDir is the engine's locked directory.
type pebbleDir struct {
	fs   vfs.FS
	path string
	lock *pebble.Lock
}

func openPebbleDir(fs vfs.FS, path string) (*pebbleDir, error) {
	if err := makeDirDurable(fs, path); err != nil {
		return nil, err
	}
	// Pebble locks each database too, but that is not enough: another process could
	// read CURRENT, and Replace retire what it names before that process opens it.
	lock, err := pebble.LockDirectory(path, fs)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &pebbleDir{fs: fs, path: path, lock: lock}, nil
}

func (d *pebbleDir) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

func generationName(number uint64) string {
	return fmt.Sprintf("db-%06d", number)
}

// parseGeneration accepts exactly what generationName writes.
func parseGeneration(name string) (uint64, bool) {
	var number uint64
	if _, err := fmt.Sscanf(name, "db-%d", &number); err != nil {
		return 0, false
	}
	return number, generationName(number) == name
}

func (d *pebbleDir) generationPath(number uint64) string {
	return d.fs.PathJoin(d.path, generationName(number))
}

// current returns the generation that counts, which is noGeneration in a new
// directory.
func (d *pebbleDir) current() (uint64, error) {
	content, err := d.readFile(currentName)
	if errors.Is(err, iofs.ErrNotExist) {
		if d.lock == nil { // read only
			return noGeneration, d.mustBeNew()
		}
		return noGeneration, d.begin()
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", currentName, err)
	}
	name, terminated := cutNewline(content)
	number, ok := parseGeneration(name)
	if !terminated || !ok {
		return 0, fmt.Errorf("%s in %s is damaged: %q is not the name of a database", currentName, d.path, content)
	}
	return number, nil
}

// begin sets up a new directory. It refuses one that has lost its CURRENT file.
func (d *pebbleDir) begin() error {
	if err := d.mustBeNew(); err != nil {
		return err
	}
	return d.setCurrent(noGeneration)
}

func (d *pebbleDir) mustBeNew() error {
	numbers, err := d.generations()
	if err != nil {
		return err
	}
	if len(numbers) > 0 {
		return fmt.Errorf("%s has no file %s but a database %s, which may be incomplete or obsolete",
			d.path, currentName, generationName(numbers[0]))
	}
	return nil
}

func cutNewline(content []byte) (string, bool) {
	n := len(content)
	if n == 0 || content[n-1] != '\n' {
		return string(content), false
	}
	return string(content[:n-1]), true
}

// setCurrent names the generation that counts from now on. After an error or a crash,
// CURRENT names either the old or the new one.
func (d *pebbleDir) setCurrent(number uint64) error {
	if err := d.writeFile(currentTempName, generationName(number)+"\n"); err != nil {
		return fmt.Errorf("write %s: %w", currentTempName, err)
	}
	from, to := d.fs.PathJoin(d.path, currentTempName), d.fs.PathJoin(d.path, currentName)
	if err := d.fs.Rename(from, to); err != nil {
		return fmt.Errorf("write %s: %w", currentName, err)
	}
	return d.sync()
}

func (d *pebbleDir) generations() ([]uint64, error) {
	names, err := d.fs.List(d.path)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d.path, err)
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := parseGeneration(name); ok {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// removeAllBut removes incomplete and retired generations that a crash left.
func (d *pebbleDir) removeAllBut(keep uint64) error {
	numbers, err := d.generations()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n == keep {
			continue
		}
		if err := d.removeGeneration(n); err != nil {
			return err
		}
	}
	return nil
}

func (d *pebbleDir) removeGeneration(number uint64) error {
	if err := d.fs.RemoveAll(d.generationPath(number)); err != nil {
		return fmt.Errorf("remove %s: %w", generationName(number), err)
	}
	return nil
}

func (d *pebbleDir) sync() error {
	return syncDir(d.fs, d.path)
}

func (d *pebbleDir) readFile(name string) ([]byte, error) {
	f, err := d.fs.Open(d.fs.PathJoin(d.path, name))
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(f)
	return content, firstError(err, f.Close())
}

// writeFile writes and syncs a file. It does not sync the directory entry.
func (d *pebbleDir) writeFile(name, content string) error {
	f, err := d.fs.Create(d.fs.PathJoin(d.path, name), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err = io.WriteString(f, content); err == nil {
		err = f.Sync()
	}
	return firstError(err, f.Close())
}

// makeDirDurable creates path and its parents, and syncs each directory entry, so that
// they survive a crash.
func makeDirDurable(fs vfs.FS, path string) error {
	parent := fs.PathDir(path)
	if _, err := fs.Stat(path); errors.Is(err, iofs.ErrNotExist) && parent != path {
		if err := makeDirDurable(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(path, 0o750); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	// This is necessary even if path exists: a process may have created it and
	// crashed before it came to sync.
	return syncDir(fs, parent)
}

func syncDir(fs vfs.FS, path string) error {
	f, err := fs.OpenDir(path)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := firstError(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
