package httpapi

import (
	"slices"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// timed reads the parameter timing, which the routes of data take: the answer
// then says in Server-Timing what the request spent its time on. x.timing
// stays nil where it is not asked for, and nothing is measured.
func (x *exchange) timed() error {
	asked, err := x.query.flag("timing")
	if err != nil || !asked {
		return err
	}
	x.timing = new(api.Timing)
	if x.start.IsZero() { // there is no Observer
		x.start = time.Now()
	}
	return nil
}

// setTiming adds Server-Timing (in milliseconds, as the header has it) to an
// answer whose header is about to go out: the stages, which depend on the
// request, and the whole time since the request's header came.
func (x *exchange) setTiming() {
	if x.timing == nil {
		return
	}
	var b []byte
	for _, s := range append(summed(x.timing.Stages), api.Stage{Name: "total", Took: time.Since(x.start)}) {
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, s.Name...)
		b = append(b, ";dur="...)
		b = strconv.AppendFloat(b, float64(s.Took)/float64(time.Millisecond), 'f', 3, 64)
	}
	x.Header()["Server-Timing"] = []string{string(b)}
}

// summed adds up the stages of a batch, which passes them many times.
func summed(stages []api.Stage) (sums []api.Stage) {
	for _, s := range stages {
		i := slices.IndexFunc(sums, func(sum api.Stage) bool { return sum.Name == s.Name })
		if i < 0 {
			sums = append(sums, s)
			continue
		}
		sums[i].Took += s.Took
	}
	return sums
}
