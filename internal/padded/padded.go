// Package padded is the form in which clients of etcd get backups: the body, padded to
// whole blocks, and the SHA-256 of all that. etcdctl accepts no other, and the file that
// it writes is taken apart here.
//
// The padding ends with its own length, in two bytes, so the body is what is before it,
// whatever it ends with. A file in this form has been checked from end to end when Body
// returns; any other file is left to the reader of bodies.
package padded

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// blockBytes is what etcdctl wants the size to be a multiple of, before the sum.
	blockBytes = 512
	// lengthBytes is the size of the length at the end of the padding.
	lengthBytes = 2
)

// Padding returns what follows a body of a size: at least the length of the padding.
func Padding(bodyBytes int64) []byte {
	n := blockBytes - int(bodyBytes%blockBytes)
	if n < lengthBytes {
		n += blockBytes
	}
	return binary.LittleEndian.AppendUint16(make([]byte, n-lengthBytes, n), uint16(n))
}

// Body returns the body in a file of a size. A file that is not in this form is returned
// as it is.
func Body(f io.ReaderAt, size int64) (*io.SectionReader, error) {
	whole := io.NewSectionReader(f, 0, size)
	padded := size - sha256.Size
	if padded < blockBytes || padded%blockBytes != 0 {
		return whole, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, padded)); err != nil {
		return nil, fmt.Errorf("sum up the backup: %w", err)
	}
	end := make([]byte, lengthBytes+sha256.Size)
	if _, err := f.ReadAt(end, padded-lengthBytes); err != nil {
		return nil, fmt.Errorf("read the sum of the backup: %w", err)
	}
	padding := int64(binary.LittleEndian.Uint16(end))
	if !bytes.Equal(sum.Sum(nil), end[lengthBytes:]) || padding < lengthBytes || padding > padded {
		return whole, nil // the reader of bodies tells what is wrong with it
	}
	return io.NewSectionReader(f, 0, padded-padding), nil
}
