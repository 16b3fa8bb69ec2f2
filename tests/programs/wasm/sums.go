// Waits for standard input in one goroutine, and writes in another what that has made of each line.
package main

import (
	"bufio"
	"fmt"
	"os"
)

func main() {
	sums := make(chan float64)
	go func() {
		sum, lines := 1.5, bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			sum = float64(sum*1.1) + float64(len(lines.Text())+1)
			sums <- sum
		}
		close(sums)
	}()
	fmt.Println("ready")
	for sum := range sums {
		fmt.Println(sum)
	}
}
