package engine

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The engine's directory holds a lock file, generations db-000001, db-000002,
// …, and CURRENT, one line with the name of the generation that counts.
const (
	currentName     = "CURRENT"
	currentTempName = "CURRENT.tmp"

	// noGeneration is what CURRENT names from before the first generation is
	// begun until it is complete. A crash in between can leave a database that
	// does not open, and this says that it may be removed.
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
	// Each database is locked by Pebble too, but between another process's
	// reading CURRENT and its opening what it names, Replace could retire it.
	lock, err := pebble.LockDirectory(path, fs)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &pebbleDir{fs: fs, path: path, lock: lock}, nil
}

func (d *pebbleDir) close() error {
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

// current returns the generation that counts. In a new directory it is
// noGeneration.
func (d *pebbleDir) current() (uint64, error) {
	content, err := d.readFile(currentName)
	if errors.Is(err, iofs.ErrNotExist) {
		return noGeneration, d.begin()
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", currentName, err)
	}
	name, terminated := cutNewline(content)
	number, ok := parseGeneration(name)
	if !terminated || !ok {
		return 0, fmt.Errorf("%s in %s is damaged: %q names no database", currentName, d.path, content)
	}
	return number, nil
}

// begin sets up a new directory. It refuses one that has lost its CURRENT file.
func (d *pebbleDir) begin() error {
	numbers, err := d.generations()
	if err != nil {
		return err
	}
	if len(numbers) > 0 {
		return fmt.Errorf("%s has no file %s, but a database %s: cannot tell whether it counts",
			d.path, currentName, generationName(numbers[0]))
	}
	return d.setCurrent(noGeneration)
}

func cutNewline(content []byte) (string, bool) {
	n := len(content)
	if n == 0 || content[n-1] != '\n' {
		return string(content), false
	}
	return string(content[:n-1]), true
}

// setCurrent names the generation that counts from now on. After an error
// either the old or the new one is found.
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

// removeAllBut removes what a crash left: half-filled and retired generations.
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

// writeFile writes and syncs a file, but not its directory entry.
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

// makeDirDurable creates path with its parents, so that they survive a crash.
func makeDirDurable(fs vfs.FS, path string) error {
	parent := fs.PathDir(path)
	if _, err := fs.Stat(path); errors.Is(err, iofs.ErrNotExist) && parent != path {
		if err := makeDirDurable(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(path, 0o750); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	// Also where path exists: a crashed process may have made it and not got
	// as far as this.
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
