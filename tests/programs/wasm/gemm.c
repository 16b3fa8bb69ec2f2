/* Products of matrices of floats and of doubles. */
#include <stdio.h>
#include <stdlib.h>

#define SIZE 24

static float narrow[3][SIZE][SIZE];

int main(int count, char **args) {
    int rounds = count > 1 ? atoi(args[1]) : 4;
    double(*wide)[SIZE][SIZE] = malloc(3 * sizeof *wide);
    for (int round = 0; round < rounds; round++) {
        double sum = 0;
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j++) {
                narrow[0][i][j] = (float)(i * j % 7) / 3 + round;
                narrow[1][i][j] = (float)(i + 2 * j) / 11;
                wide[0][i][j] = narrow[0][i][j] / 3.0;
                wide[1][i][j] = narrow[1][i][j] * 1.7;
                narrow[2][i][j] = 0;
                wide[2][i][j] = 0;
            }
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j++) {
                for (int k = 0; k < SIZE; k++) {
                    narrow[2][i][j] += narrow[0][i][k] * narrow[1][k][j];
                    wide[2][i][j] += wide[0][i][k] * wide[1][k][j];
                }
                sum += narrow[2][i][j] - wide[2][i][j];
            }
        printf("%d %a\n", round, sum);
    }
    free(wide);
    return 0;
}
