package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrStoreBehind is the cause of a refusal that a body from another member heals.
var ErrStoreBehind = errors.New("the store lacks entries that the log no longer has")

// JudgeStore refuses a store that does not fit the log: the store has applied the
// entries up to index, and the log goes on from its newest snapshot to its last
// entry. A log whose snapshot is the initial one reaches back to the beginning. A
// start and the doctor both ask it.
func JudgeStore(dir string, initial, index, snapshot, last uint64) error {
	if index > last {
		return refuse(dir, "the store contains entry %d, but the log ends at %d", index, last)
	}
	if index >= snapshot || snapshot == initial {
		return nil
	}
	_, err := os.Stat(BodyPath(dir, snapshot))
	if errors.Is(err, os.ErrNotExist) {
		return RefuseStore(dir, fmt.Sprintf("the store ends at entry %d, and the log begins after entry %d", index, snapshot), ErrStoreBehind)
	}
	if err != nil {
		return fmt.Errorf("look for the snapshot body: %w", err)
	}
	return nil
}

// JudgeBody refuses a directory whose state would come from a damaged body.
func JudgeBody(dir string, index uint64, verify func(io.Reader) error) error {
	path := BodyPath(dir, index)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := verify(f); err != nil {
		return RefuseStore(dir, fmt.Sprintf("the state of this member is in %s, which is damaged", path), err)
	}
	return nil
}
