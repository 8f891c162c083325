package cli

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Bar shows on a terminal how far something has come. The zero value shows nothing,
// which is what everything but a terminal gets.
type Bar struct{ bar *progressbar.ProgressBar }

// NewBar returns a bar on w, if that is a terminal. total is -1 if it is not known;
// unit is what is counted, "bytes" for sizes.
func NewBar(w io.Writer, total int64, what, unit string) *Bar {
	if !isTerminal(w) {
		return &Bar{}
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(what),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionShowCount(),
		progressbar.OptionSpinnerType(14),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
	}
	if unit == "bytes" { // which also shows the rate
		options = append(options, progressbar.OptionShowBytes(true))
	} else {
		options = append(options, progressbar.OptionShowIts(), progressbar.OptionSetItsString(unit))
	}
	return &Bar{progressbar.NewOptions64(total, options...)}
}

// Add counts n more.
func (b *Bar) Add(n int64) {
	if b.bar != nil {
		_ = b.bar.Add64(n) // a bar that cannot be drawn is no reason to stop
	}
}

// Set says how far it is, of how much.
func (b *Bar) Set(done, total int64) {
	if b.bar != nil {
		b.bar.ChangeMax64(total)
		_ = b.bar.Set64(done)
	}
}

// Reader counts the bytes that are read from r.
func (b *Bar) Reader(r io.Reader) io.Reader {
	if b.bar == nil {
		return r
	}
	reader := progressbar.NewReader(r, b.bar)
	return &reader
}

// Done removes the bar, so that the line of the result takes its place.
func (b *Bar) Done() {
	if b.bar != nil {
		_ = b.bar.Clear()
		_ = b.bar.Exit()
	}
}
