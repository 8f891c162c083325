package datadir

import (
	"fmt"
	"io"

	"github.com/dustin/go-humanize"
)

// reserveBytes is the free space that snapshot bodies and spools leave to the
// log and the store. They can be made again later; a write of the log that finds
// no space ends the node. It holds two segments that the WAL prepares, and a
// flush of the engine.
const reserveBytes = 4 * segmentBytes

// NoRoomError says that a directory's disk is too full for a file that can wait.
type NoRoomError struct {
	Dir   string
	Needs uint64 // bytes, with the reserve
	Free  uint64
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("not enough space in %s: %s free, %s needed (%s of it stays free for the log and the store)",
		e.Dir, humanize.IBytes(e.Free), humanize.IBytes(e.Needs), humanize.IBytes(reserveBytes))
}

// CheckRoom returns a *NoRoomError if the disk of the directory cannot take so
// many more bytes and keep its reserve. If the free space is not known, there is
// room.
func CheckRoom(dir string, bytes int64) error {
	free, ok := freeBytes(dir)
	if needs := uint64(max(bytes, 0)) + reserveBytes; ok && free < needs {
		return &NoRoomError{Dir: dir, Needs: needs, Free: free}
	}
	return nil
}

// roomPace is after how many bytes a writer looks at the free space again.
const roomPace = 8 << 20

// RoomyWriter fails before the disk is full. Free space is compared while a file
// is written, not only before, because others write to the disk too.
type RoomyWriter struct {
	Dir  string
	W    io.Writer
	left int64 // bytes until the next look
}

// Write implements io.Writer.
func (w *RoomyWriter) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		if err := CheckRoom(w.Dir, roomPace+int64(len(p))); err != nil {
			return 0, err
		}
		w.left = roomPace
	}
	return w.W.Write(p)
}
