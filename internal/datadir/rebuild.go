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

func rebuildingPath(dir string) string { return filepath.Join(dir, "rebuilding") }

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
		return "", os.RemoveAll(store) // what an interrupted rebuild left
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
	if err != nil {
		return "", fmt.Errorf("move the store aside: %w", err)
	}
	return aside, nil
}

// EndRebuild records that the store fits the log again.
func (d *Dir) EndRebuild() error {
	err := os.Remove(rebuildingPath(d.path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(d.path))
}
