package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// format is how results are printed.
type format int

const (
	formatDefault format = iota // what suits the command
	formatTable
	formatJSON
	formatValue // bare: the value, or the one word that a script wants
)

var formats = []string{"", "table", "json", "value"}

// String returns the name as in --output.
func (f format) String() string { return formats[f] }

func parseFormat(name string) (format, error) {
	for i, known := range formats {
		if name == known {
			return format(i), nil
		}
	}
	return 0, usagef("--output is %q, but must be table, json, or value", name)
}

// formatOr returns the format, or the command's own if the user named none.
func (s *session) formatOr(own format) format {
	if s.format == formatDefault {
		return own
	}
	return s.format
}

// isTerminal reports whether w is a terminal, on which a person reads.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// columns returns the width of the terminal, 0 if w is none.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// colored reports whether standard output may have colors: see https://no-color.org.
func (s *session) colored() bool {
	return isTerminal(s.env.Stdout) && variable(s.env.Environ, "NO_COLOR") == "" && variable(s.env.Environ, "TERM") != "dumb"
}

// color paints a word of a table, for example the state of a member.
func (s *session) color(c text.Color, word string) string {
	if !s.colored() {
		return word
	}
	// go-pretty guesses whether the output has colors; here it is known.
	return c.EscapeSeq() + word + text.EscapeReset
}

// tableStyle has no lines: rows are for cut and awk as well as for eyes.
var tableStyle = table.Style{
	Name:    "kvd",
	Box:     table.BoxStyle{PaddingRight: "   "},
	Options: table.OptionsNoBordersAndSeparators,
	Format:  table.FormatOptions{Header: text.FormatDefault, HeaderVAlign: text.VAlignTop},
}

// printTable prints rows under headings. Cells are for terminals: they have no
// control characters, except for the colors of s.color.
func (s *session) printTable(headings []string, rows [][]string) error {
	t := table.NewWriter()
	t.SetStyle(tableStyle)
	t.SuppressTrailingSpaces()
	if len(headings) > 0 {
		t.AppendHeader(tableRow(headings))
	}
	for _, r := range rows {
		t.AppendRow(tableRow(r))
	}
	return s.println(t.Render())
}

func tableRow(cells []string) table.Row {
	row := make(table.Row, len(cells))
	for i, c := range cells {
		row[i] = c
	}
	return row
}

// printFields prints names with values, one a line.
func (s *session) printFields(fields [][2]string) error {
	rows := make([][]string, len(fields))
	for i, f := range fields {
		rows[i] = []string{f[0], f[1]}
	}
	return s.printTable(nil, rows)
}

// printJSON prints one document on one line.
func (s *session) printJSON(doc any) error {
	enc := json.NewEncoder(s.env.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

func (s *session) println(text string) error {
	_, err := fmt.Fprintln(s.env.Stdout, text)
	return err
}

// note tells a person something beside the result.
func (s *session) note(format string, args ...any) {
	fmt.Fprintf(s.env.Stderr, "kvd: "+format+"\n", args...)
}

// printable returns a byte string as a terminal may show it: in quotes with escapes
// if it has anything but printable text.
func printable(b string) string {
	plain := utf8.ValidString(b) && strings.IndexFunc(b, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
	if plain && b != "" && !strings.HasPrefix(b, `"`) {
		return b
	}
	return strconv.Quote(b)
}

// harmless reports whether a terminal may be given the value as it is: text without
// control characters but tabs and ends of lines.
func harmless(value []byte) bool {
	odd := func(r rune) bool { return unicode.IsControl(r) && r != '\t' && r != '\n' && r != '\r' }
	return utf8.Valid(value) && bytes.IndexFunc(value, odd) < 0
}

// shorten cuts a text to a number of columns.
func shorten(s string, width int) string {
	if width <= 0 || text.StringWidthWithoutEscSequences(s) <= width {
		return s
	}
	return text.Trim(s, width-1) + "…"
}

// byteField adds a byte string to a document as the HTTP interface does: under its
// name if it is text, else in base64.
func byteField(doc map[string]any, name, value string) {
	if utf8.ValidString(value) {
		doc[name] = value
		return
	}
	doc[name+"_base64"] = base64.StdEncoding.EncodeToString([]byte(value))
}
