package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A store that is lost or damaged can be filled again, while log and identity stay.
// The old files move to store.damaged-N first, and are never deleted. From then on
// until the new store fits the log, the file "rebuilding" says that what is in
// store/ does not count.

//
// A node that finds its store damaged while it runs plans a rebuild for its next start
// in the file "rebuild-planned" (PlanRebuild).

func rebuildingPath(dir string) string { return filepath.Join(dir, "rebuilding") }

func plannedPath(dir string) string { return filepath.Join(dir, "rebuild-planned") }

// maxDamagedStores bounds how often a store is rebuilt without an operator, who removes
// the damaged ones: a disk that damages one store after the other must be replaced.
const maxDamagedStores = 2

// DamagedStores returns the number of damaged stores that were moved aside and still exist.
func DamagedStores(dir string) int {
	names, err := filepath.Glob(filepath.Join(dir, storeName+".damaged-*"))
	if err != nil {
		return 0
	}
	return len(names)
}

// CanRebuild returns nil if a store of so many bytes may be rebuilt without an operator, and
// otherwise why not.
func CanRebuild(dir string, storeBytes int64) error {
	if n := DamagedStores(dir); n >= maxDamagedStores {
		return fmt.Errorf("the store was rebuilt %d times already: replace the disk, or delete %s", n, filepath.Join(dir, storeName+".damaged-*"))
	}
	return CheckRoom(dir, storeBytes)
}

// PlanRebuild makes the next start rebuild the store.
func (d *Dir) PlanRebuild() error {
	if err := replaceFile(plannedPath(d.path), []byte("the store was found damaged; the next start rebuilds it\n")); err != nil {
		return fmt.Errorf("plan a rebuild of the store: %w", err)
	}
	return nil
}

// RebuildPlanned reports whether the next start has to rebuild the store.
func (d *Dir) RebuildPlanned() bool {
	_, err := os.Stat(plannedPath(d.path))
	return err == nil
}

// Rebuilding reports whether a rebuild of the store was begun and has not ended.
func (d *Dir) Rebuilding() bool {
	_, err := os.Stat(rebuildingPath(d.path))
	return err == nil
}

// BeginRebuild makes way for a new store. It returns where the old one is now; ""
// if there was none.
func (d *Dir) BeginRebuild() (aside string, err error) {
	store := StorePath(d.path)
	if d.Rebuilding() {
		return "", errors.Join(os.RemoveAll(store), d.removePlan()) // what an interrupted rebuild left
	}
	for n := 1; ; n++ {
		aside = fmt.Sprintf("%s.damaged-%d", store, n)
		if _, err := os.Lstat(aside); errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return "", err
		}
	}
	err = os.Rename(store, aside)
	if errors.Is(err, os.ErrNotExist) {
		aside, err = "", nil
	}
	// In this order: if the second step is lost, the damaged store is not deleted.
	if err = errors.Join(err, syncDir(d.path)); err == nil {
		err = replaceFile(rebuildingPath(d.path), []byte("the store is being rebuilt; the next start continues\n"))
	}
	if err == nil {
		err = d.removePlan()
	}
	if err != nil {
		return "", fmt.Errorf("move the store aside: %w", err)
	}
	return aside, nil
}

func (d *Dir) removePlan() error {
	err := os.Remove(plannedPath(d.path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(d.path))
}

// EndRebuild records that the store fits the log again.
func (d *Dir) EndRebuild() error {
	err := os.Remove(rebuildingPath(d.path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(d.path))
}
