package transfer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
)

// fileSource is a source that reads a file with a function for its form. It is read
// whole before anything is stored, so that a mistake in its last line does no harm.
func fileSource(stdin io.Reader, name string, read func(r io.Reader) iter.Seq2[Pair, error]) (*Source, error) {
	out := &Source{What: name}
	var file *os.File
	var err error
	if name == "-" {
		out.What = "standard input"
		file, err = spool(stdin)
	} else if file, err = os.Open(name); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	out.Close = func() { file.Close() }
	out.pairs = func(context.Context) iter.Seq2[Pair, error] {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return func(yield func(Pair, error) bool) { yield(Pair{}, err) }
		}
		return read(bufio.NewReaderSize(file, 1<<20))
	}
	out.check = func() (n int64, err error) {
		for _, err := range out.pairs(context.Background()) {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	}
	return out, nil
}

// spool copies what can be read once to a file that can be read again. The file has
// no name, so that nothing is left of it however the process ends.
func spool(r io.Reader) (*os.File, error) {
	file, err := os.CreateTemp("", "kvd-import-*")
	if err != nil {
		return nil, fmt.Errorf("copy standard input: %w", err)
	}
	_, err = io.Copy(file, r)
	if err = errors.Join(err, os.Remove(file.Name())); err != nil {
		return nil, errors.Join(fmt.Errorf("copy standard input: %w", err), file.Close())
	}
	return file, nil
}

// FromExport reads an export of kvd. - stands for standard input.
func FromExport(stdin io.Reader, name string) (*Source, error) {
	return fileSource(stdin, name, func(r io.Reader) iter.Seq2[Pair, error] {
		return func(yield func(Pair, error) bool) {
			for in := newExportReader(r); ; {
				line, err := in.next()
				switch {
				case errors.Is(err, io.EOF):
					return
				case err != nil:
					yield(Pair{}, err)
					return
				case line.Type != "":
				case !yield(Pair{line.KeyText(), []byte(line.ValueText()), line.leased()}, nil):
					return
				}
			}
		}
	})
}

// FromConsul reads what consul kv export has written: an array of objects. - stands
// for standard input.
func FromConsul(stdin io.Reader, name string) (*Source, error) {
	return fileSource(stdin, name, func(r io.Reader) iter.Seq2[Pair, error] {
		return func(yield func(Pair, error) bool) {
			if err := readConsul(json.NewDecoder(r), func(p Pair) bool { return yield(p, nil) }); err != nil {
				yield(Pair{}, err)
			}
		}
	})
}

// readConsul calls use for each entry until it has had enough.
func readConsul(dec *json.Decoder, use func(Pair) bool) error {
	if start, err := dec.Token(); err != nil || start != json.Delim('[') {
		return errors.New("it does not begin like the output of consul kv export, with [")
	}
	for n := 1; dec.More(); n++ {
		// Flags have no counterpart in kvd; docs/migrate.md says so.
		var entry struct {
			Key   string `json:"key"`
			Value []byte `json:"value"`
		}
		if err := decodeText(dec, &entry); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if entry.Key == "" {
			return fmt.Errorf("entry %d has no key", n)
		}
		if !use(Pair{Key: entry.Key, Value: entry.Value}) {
			return nil
		}
	}
	if _, err := dec.Token(); err != nil {
		return errors.New("it is incomplete: the ] at the end is missing")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the ] at its end; import one file after the other")
	}
	return nil
}
