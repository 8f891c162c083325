package transfer

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/kvd-io/kvd/client"
)

// Format is the version of the form of exports.
const Format = 1

// Head is the first line of an export.
type Head struct {
	Type     string `json:"type"` // "kvd-export"
	Format   int    `json:"format"`
	Revision uint64 `json:"revision"`
	Prefix   string `json:"prefix,omitempty"`
}

// End is the last line. Without it, an export is incomplete.
type End struct {
	Type     string `json:"type"` // "end"
	Count    uint64 `json:"count"`
	Revision uint64 `json:"revision"`
	SHA256   string `json:"sha256,omitempty"`
}

// Exporter writes one export. Its use is Begin or Resume, Add for each pair of
// Rest, and Finish.
type Exporter struct {
	head   Head
	out    *bufio.Writer
	enc    *json.Encoder
	digest *digest
	last   string // key; "" before the first
}

// NewExporter returns an exporter that writes to out.
func NewExporter(out io.Writer) *Exporter {
	x := &Exporter{out: bufio.NewWriterSize(out, 1<<20), digest: newDigest()}
	x.enc = json.NewEncoder(x.out)
	x.enc.SetEscapeHTML(false)
	return x
}

// Begin writes the first line.
func (x *Exporter) Begin(revision uint64, prefix string) error {
	x.head = Head{"kvd-export", Format, revision, prefix}
	return x.enc.Encode(x.head)
}

// Resume reads what an interrupted export wrote to the file, cuts off a line that is
// not complete, and goes on behind it.
func (x *Exporter) Resume(file *os.File) error {
	r := newExportReader(file)
	end := int64(0)
	for {
		line, err := r.next()
		if err != nil {
			break // where the writing stopped; what is there before is whole
		}
		if line.SHA256 != "" {
			break // only the new name was missing; the line is written again
		}
		if end = r.offset(); line.Type == "" {
			x.digest.add(line.KeyText(), []byte(line.ValueText()))
			x.last = line.KeyText()
		}
	}
	x.head = r.head
	if x.head.Format != Format {
		return fmt.Errorf("%s does not begin like an export; remove it, and begin anew", file.Name())
	}
	if err := file.Truncate(end); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if _, err := file.Seek(end, io.SeekStart); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	_, err := x.out.WriteString("\n") // that of the last line, which was cut off
	return err
}

// Revision returns the revision of the export.
func (x *Exporter) Revision() uint64 { return x.head.Revision }

// Rest returns the keys that are not yet written.
func (x *Exporter) Rest() client.Range {
	if x.last != "" {
		return client.Between(x.last+"\x00", After(x.head.Prefix))
	}
	return client.Prefix(x.head.Prefix)
}

// Add writes a pair. Pairs come in the order of their keys.
func (x *Exporter) Add(kv *client.KV) error {
	x.digest.add(kv.Key, kv.Value)
	return x.enc.Encode(Document(kv))
}

// Finish writes the last line.
func (x *Exporter) Finish() error { return x.enc.Encode(x.Summary()) }

// Flush hands everything to the writer.
func (x *Exporter) Flush() error { return x.out.Flush() }

// Summary describes what was written.
func (x *Exporter) Summary() End {
	return End{"end", x.digest.pairs, x.head.Revision, x.digest.String()}
}
