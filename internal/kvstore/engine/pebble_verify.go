package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const manifestPrefix = "MANIFEST-"

// Files implements Verifier: the tables and the manifest of the current generation.
func (e *pebbleEngine) Files() (generation uint64, files []File, err error) {
	g, err := e.acquire()
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = firstError(err, g.release()) }()
	levels, err := g.db.SSTables()
	if err != nil {
		return 0, nil, err
	}
	dir := generationName(g.number)
	seen := make(map[string]bool)
	for _, tables := range levels {
		for _, t := range tables {
			name := path.Join(dir, fmt.Sprintf("%s.sst", t.BackingSSTNum))
			if !seen[name] {
				seen[name] = true
				files = append(files, File{Name: name, Number: uint64(t.BackingSSTNum), Bytes: int64(t.Size)})
			}
		}
	}
	manifest, err := e.manifestOf(dir)
	files = append(files, manifest...)
	slices.SortFunc(files, func(a, b File) int { return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Name, b.Name)) })
	return g.number, files, err
}

// manifestOf returns the newest manifest, which is the one in use.
func (e *pebbleEngine) manifestOf(dir string) ([]File, error) {
	names, err := e.opts.FS.List(e.opts.FS.PathJoin(e.dir.path, dir))
	if err != nil {
		return nil, err
	}
	var newest File
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, manifestPrefix)
		number, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && number >= newest.Number {
			newest = File{Name: path.Join(dir, name), Number: number}
		}
	}
	if newest.Name == "" {
		return nil, nil // a new manifest is being installed
	}
	info, err := e.opts.FS.Stat(e.opts.FS.PathJoin(e.dir.path, newest.Name))
	if err != nil {
		return nil, err
	}
	newest.Bytes = info.Size()
	return []File{newest}, nil
}

// Verify implements Verifier. It may take hours and does not pin the generation meanwhile:
// the open file keeps its content even if a compaction removes it.
func (e *pebbleEngine) Verify(file File, pace func(n int) error) error {
	f, err := e.opts.FS.Open(e.opts.FS.PathJoin(e.dir.path, file.Name))
	if errors.Is(err, iofs.ErrNotExist) {
		return e.missing(file, err)
	}
	if err != nil {
		return damage(err)
	}
	forgetPages(f.Fd())
	r := &pacedFile{File: f, pace: pace}
	if strings.HasPrefix(path.Base(file.Name), manifestPrefix) {
		err = verifyRecords(r, file.Bytes)
	} else {
		err = e.verifyTable(r)
	}
	if r.stopped != nil {
		err = r.stopped // the rest was not checked
	} else if err != nil {
		err = e.confirm(file, err)
	}
	return firstError(err, f.Close())
}

// missing distinguishes a file that a compaction has removed from one that is lost.
func (e *pebbleEngine) missing(file File, err error) error {
	_, now, lerr := e.Files()
	if lerr != nil {
		return lerr
	}
	if slices.ContainsFunc(now, func(f File) bool { return f.Name == file.Name }) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// confirm adds the file to the error. It returns nil if the error does not count: a table
// was removed, or a record was being appended to the manifest.
func (e *pebbleEngine) confirm(file File, err error) error {
	_, now, lerr := e.Files()
	if lerr != nil {
		return lerr
	}
	for _, f := range now {
		if f.Name == file.Name && (f.Bytes == file.Bytes || strings.HasSuffix(f.Name, ".sst")) {
			return damage(fmt.Errorf("%s: %w", e.opts.FS.PathJoin(e.dir.path, file.Name), err))
		}
	}
	return nil
}

// verifyTable checks all blocks of a table. Pebble's own ValidateBlockChecksums leaves
// out the blocks of values, and cannot be slowed down.
func (e *pebbleEngine) verifyTable(f *pacedFile) (err error) {
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return err
	}
	opts := e.pebbleOptions()
	opts.EnsureDefaults()
	r, err := sstable.NewReader(context.Background(), unclosed{readable}, opts.MakeReaderOptions())
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, r.Close()) }()
	layout, err := r.Layout()
	if err != nil {
		return err
	}
	kind := make([]byte, 1) // the first byte of the footer says which checksums the table has
	if _, err := f.ReadAt(kind, int64(layout.Footer.Offset)); err != nil {
		return err
	}
	var buf []byte
	for _, h := range blocksOf(layout) {
		buf = slices.Grow(buf[:0], int(h.Length)+block.TrailerLen)[:int(h.Length)+block.TrailerLen]
		if _, err := f.ReadAt(buf, int64(h.Offset)); err != nil {
			return fmt.Errorf("block at byte %d: %w", h.Offset, err)
		}
		if err := block.ValidateChecksum(block.ChecksumType(kind[0]), buf, h); err != nil {
			return fmt.Errorf("block at byte %d: %w", h.Offset, err)
		}
	}
	return nil
}

// blocksOf returns the blocks in the order in which they are in the file.
func blocksOf(l *sstable.Layout) []block.Handle {
	all := []block.Handle{l.TopIndex, l.RangeDel, l.RangeKey, l.ValueIndex, l.Properties, l.MetaIndex, l.BlobReferenceIndex}
	for _, d := range l.Data {
		all = append(all, d.Handle)
	}
	for _, f := range l.Filter {
		all = append(all, f.Handle)
	}
	all = append(append(all, l.Index...), l.ValueBlock...)
	all = slices.DeleteFunc(all, func(h block.Handle) bool { return h.Length == 0 })
	slices.SortFunc(all, func(a, b block.Handle) int { return cmp.Compare(a.Offset, b.Offset) })
	return all
}

// verifyRecords checks the records in the given length of a manifest.
func verifyRecords(f *pacedFile, bytes int64) error {
	r := record.NewReader(io.NewSectionReader(f, 0, bytes), 0)
	for {
		one, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			_, err = io.Copy(io.Discard, one)
		}
		if err != nil {
			return fmt.Errorf("record before byte %d: %w", r.Offset(), err)
		}
	}
}

// pacedFile calls pace before each read.
type pacedFile struct {
	vfs.File
	pace    func(n int) error
	stopped error // why pace ended the reading
}

func (f *pacedFile) ReadAt(p []byte, offset int64) (int, error) {
	if err := f.pace(len(p)); err != nil {
		f.stopped = err
		return 0, err
	}
	return f.File.ReadAt(p, offset)
}

func (f *pacedFile) Stat() (vfs.FileInfo, error) { return f.File.Stat() }

// unclosed ignores Close, because the caller closes the file.
type unclosed struct{ objstorage.Readable }

func (unclosed) Close() error { return nil }
