package settings

import "strings"

// maxTypos is the largest distance of a mistyped name. With three, short names
// resemble everything: --port would be proposed for --host.
const maxTypos = 2

// maxGuessed bounds the length of a name that is compared with all others.
const maxGuessed = 64

// nearest proposes the setting that was probably meant, written as the origin
// writes names.
func nearest(name string, form func(string) string) string {
	best := closest(name, acceptedNames())
	if best == "" {
		return "; see kvd --help-all for the list"
	}
	return "; did you mean " + form(best) + "?"
}

// closest returns the candidate that a mistyped name resembles most, "" if it
// resembles none.
func closest(name string, candidates []string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	// In a name of four letters, two typos leave a different word: --cert is not a
	// mistyped --port.
	best, least := "", min(maxTypos, len(name)/3)+1
	for _, candidate := range candidates {
		if d := typos(name, candidate); d < least {
			best, least = candidate, d
		}
	}
	return best
}

// typos returns the number of letters to change, add or remove to get from one name
// to the other (Levenshtein distance). Missing dashes do not count: --datadir is
// --data-dir.
func typos(a, b string) int {
	if len(a) > maxGuessed {
		return maxTypos + 1
	}
	if strings.ReplaceAll(a, "-", "") == strings.ReplaceAll(b, "-", "") {
		return 0
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
