// Goroutines, channels, select, a mutex, maps and a recovered panic; the output does not depend on scheduling.
package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync"
	"time"
)

type result struct {
	id  int
	sum uint64
}

func collatz(number int) (steps uint64) {
	for ; number != 1; steps++ {
		if number%2 == 0 {
			number /= 2
		} else {
			number = 3*number + 1
		}
	}
	return
}

func work(jobs <-chan int, results chan<- result, done *sync.WaitGroup) {
	defer done.Done()
	for job := range jobs {
		var sum uint64
		for number := 1; number <= 20+job; number++ {
			sum = sum*31 + collatz(number)
		}
		results <- result{job, sum}
	}
}

func element(list []int, index int) (text string) {
	defer func() {
		if failure := recover(); failure != nil {
			text = fmt.Sprint("recovered: ", failure)
		}
	}()
	return fmt.Sprint("fine: ", list[index])
}

func main() {
	rounds := 3
	if len(os.Args) > 1 {
		rounds, _ = strconv.Atoi(os.Args[1])
	}
	sums := map[int]uint64{}
	var lock sync.Mutex
	for round := 0; round < rounds; round++ {
		jobs, results := make(chan int), make(chan result, 4)
		var workers sync.WaitGroup
		for worker := 0; worker < 4; worker++ {
			workers.Add(1)
			go work(jobs, results, &workers)
		}
		go func() {
			for job := 0; job < 10; job++ {
				jobs <- job + round
			}
			close(jobs)
		}()
		go func() { workers.Wait(); close(results) }()
		for one := range results {
			lock.Lock()
			sums[one.id] = sums[one.id]*1099511628211 ^ one.sum
			lock.Unlock()
		}
		ids := []int{}
		for id := range sums {
			ids = append(ids, id)
		}
		sort.Ints(ids)
		var all uint64
		for _, id := range ids {
			all = all*31 + sums[id]
		}
		select {
		case <-time.After(time.Millisecond):
			fmt.Printf("%d: %016x %s\n", round, all, element([]int{1, 2}, round))
		case <-time.After(time.Hour):
			fmt.Println("late")
		}
	}
}
