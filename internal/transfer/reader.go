package transfer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// exportLine is any line of an export.
type exportLine struct {
	Type   string `json:"type"`
	Format int    `json:"format"`
	Prefix string `json:"prefix"`
	PairJSON
	Count    *uint64 `json:"count"`
	Revision uint64  `json:"revision"`
	SHA256   string  `json:"sha256"`
}

// exportReader reads an export, or the NDJSON of GET /v1/kv, whose lines are the
// same but for the first one and the hash. It checks what the last line promises.
type exportReader struct {
	dec    *json.Decoder
	head   Head
	digest *digest
	lines  int
	ended  bool
}

func newExportReader(r io.Reader) *exportReader {
	return &exportReader{dec: json.NewDecoder(bufio.NewReaderSize(r, 1<<20)), digest: newDigest()}
}

// offset returns the end of the last line that was read.
func (r *exportReader) offset() int64 { return r.dec.InputOffset() }

// next returns the next line. After the last one it returns io.EOF if the export is
// complete and as it was written.
func (r *exportReader) next() (*exportLine, error) {
	line := new(exportLine)
	err := decodeText(r.dec, line)
	r.lines++
	switch {
	case errors.Is(err, io.EOF) && r.ended:
		return nil, io.EOF
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("it is incomplete: the last line, with the number of keys, is missing after %d keys", r.digest.pairs)
	case err != nil:
		return nil, fmt.Errorf("line %d is not a line of an export: %w", r.lines, err)
	case r.ended:
		return nil, fmt.Errorf("line %d comes after the end", r.lines)
	}
	return line, r.check(line)
}

var errNoText = errors.New("it has bytes or escapes that are no UTF-8; byte strings that are not text must be in base64")

// decodeText decodes the next value. encoding/json would replace bytes that are no UTF-8, and
// the escapes of half a character, so that a key would become another one.
func decodeText(dec *json.Decoder, into any) error {
	var text json.RawMessage
	if err := dec.Decode(&text); err != nil {
		return err
	}
	if !utf8.Valid(text) || hasUnpairedSurrogate(text) {
		return errNoText
	}
	return json.Unmarshal(text, into)
}

// hasUnpairedSurrogate reports whether a valid JSON text has an escape such as \ud800, which
// stands for half of a character, without its other half.
func hasUnpairedSurrogate(text []byte) bool {
	for {
		i := bytes.IndexByte(text, '\\')
		if i < 0 {
			return false
		}
		text = text[i:]
		if text[1] != 'u' {
			text = text[2:]
			continue
		}
		if r := escapedUnit(text); !utf16.IsSurrogate(r) {
			text = text[6:]
		} else if utf16.DecodeRune(r, escapedUnit(text[6:])) == utf8.RuneError {
			return true
		} else {
			text = text[12:]
		}
	}
}

// escapedUnit returns the UTF-16 unit of the escape that a text begins with, or -1.
func escapedUnit(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}

func (r *exportReader) check(line *exportLine) error {
	switch {
	case line.Type == "kvd-export" && r.lines == 1 && line.Format == Format:
		r.head = Head{line.Type, line.Format, line.Revision, line.Prefix}
	case line.Type == "kvd-export" && r.lines == 1:
		return fmt.Errorf("its format is %d, but this version of kvd reads only %d", line.Format, Format)
	case line.Type == "end" && line.Count != nil:
		r.ended = true
		if *line.Count != r.digest.pairs {
			return fmt.Errorf("it has %d keys, but its last line says %d", r.digest.pairs, *line.Count)
		}
		if line.SHA256 != "" && line.SHA256 != r.digest.String() {
			return fmt.Errorf("it was changed: its sha256 is %s, but its last line says %s", r.digest, line.SHA256)
		}
	case line.Type != "" || line.KeyText() == "" || !line.HasValue():
		return fmt.Errorf("line %d has no key and value", r.lines)
	default:
		r.digest.add(line.KeyText(), []byte(line.ValueText()))
	}
	return nil
}
