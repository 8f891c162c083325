package httpapi

import (
	"slices"
	"strconv"
	"time"
)

// timing is what a request spent its time on, for the header Server-Timing.
type timing struct{ stages []stage }

type stage struct {
	name string
	took time.Duration
}

// note adds a stage. A stream of operations goes through the same stages once per
// group; they are added up.
func (t *timing) note(name string, took time.Duration) {
	i := slices.IndexFunc(t.stages, func(s stage) bool { return s.name == name })
	if i < 0 {
		t.stages = append(t.stages, stage{name, took})
		return
	}
	t.stages[i].took += took
}

// parseTiming reads the parameter timing, which the data routes take. x.timing
// stays nil for a request without it, and nothing is measured.
func (x *exchange) parseTiming() error {
	asked, err := x.query.Flag("timing")
	if err != nil || !asked {
		return err
	}
	x.timing = new(timing)
	if x.start.IsZero() { // there is no Observer
		x.start = time.Now()
	}
	return nil
}

// noteStage is what a Replicator reports the stages to.
func (t *timing) noteStage() NoteStage {
	if t == nil {
		return nil
	}
	return t.note
}

// setTiming adds Server-Timing (in milliseconds, as that header has it) to an
// answer whose header is about to be sent: the stages, which depend on the
// request, and the total since the request's header arrived.
func (x *exchange) setTiming() {
	if x.timing == nil {
		return
	}
	var b []byte
	for _, s := range append(x.timing.stages, stage{"total", time.Since(x.start)}) {
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, s.name...)
		b = append(b, ";dur="...)
		b = strconv.AppendFloat(b, float64(s.took)/float64(time.Millisecond), 'f', 3, 64)
	}
	x.Header()["Server-Timing"] = []string{string(b)}
}
