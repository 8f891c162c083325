package param

import (
	"strconv"
	"strings"
)

// Prefers reports whether the Accept lines rate a media type higher than the default one.
// A tie goes to the default: a client that lists both, or adds */*, accepts either.
func Prefers(lines []string, media, otherwise string) bool {
	if len(lines) == 0 {
		return false
	}
	return quality(lines, media) > quality(lines, otherwise)
}

// quality returns the weight that the most specific matching range gives a media type
// (RFC 9110, section 12.5.1). Invalid ranges are ignored.
func quality(lines []string, media string) float64 {
	best, bestSpecific := 0.0, 0
	for _, line := range lines {
		for element := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(element, ";")
			if s := specificity(strings.TrimSpace(name), media); s > bestSpecific {
				best, bestSpecific = weight(params), s
			}
		}
	}
	return best
}

// specificity says how closely a media range matches a type: 3 exactly, 2 by its main
// type, 1 as */*, 0 not at all.
func specificity(pattern, media string) int {
	main, _, _ := strings.Cut(media, "/")
	switch {
	case strings.EqualFold(pattern, media):
		return 3
	case strings.EqualFold(pattern, main+"/*"):
		return 2
	case pattern == "*/*":
		return 1
	}
	return 0
}

// weight returns the parameter q, by default 1.
func weight(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if !strings.EqualFold(name, "q") {
			continue
		}
		q, err := strconv.ParseFloat(value, 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}
